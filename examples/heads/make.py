"""Write the three small data sets of this folder: python make.py. Phrases are joined at random, and the phrases give the labels."""

from __future__ import annotations

import json
import random
from pathlib import Path

TOPICS = {
    "billing": [
        "the invoice lists Plus twice",
        "I was charged after I cancelled",
        "your refund is four euros short",
        "please send the receipt as a PDF",
        "the voucher was not taken off the total",
        "my card expired and the payment bounced",
        "what is this fee of 2.90 on my statement",
        "the direct debit came a week early",
    ],
    "delivery": [
        "the parcel never arrived",
        "tracking has not moved since Monday",
        "the courier left the box in the rain",
        "I need it sent to my office instead",
        "half of the order is missing from the box",
        "the carton was torn open",
        "nobody rang although I was at home all day",
        "when will the backorder ship",
    ],
    "defect": [
        "the display stays black",
        "the fan rattles at every speed",
        "it loses the network each night",
        "the sensor screams without any water",
        "the battery swells and feels hot",
        "the valve is stuck half open",
        "the hub restarts every ten minutes",
        "the lamp flickers when dimmed",
    ],
    "praise": [
        "your support was quick and kind",
        "setup took me five minutes, wonderful",
        "the new app looks great",
        "I love how quiet it is",
        "my mother finally has a warm bathroom, thank you",
        "best purchase of this year",
        "the technician explained everything patiently",
        "I keep recommending you to neighbours",
    ],
}
FEELINGS = [  # what a phrase says about how content somebody is, 0 to 10
    (0, "I have never been treated this badly"),
    (0, "it ruined our floor and nobody cares"),
    (1, "three calls and still no answer"),
    (1, "I want my money back at once"),
    (2, "it broke after two days"),
    (2, "the manual is of no use at all"),
    (3, "it drops the connection now and then"),
    (4, "it took longer than promised"),
    (4, "the app is a bit confusing"),
    (5, "it works, nothing more to say"),
    (5, "neither good nor bad"),
    (6, "it is fine once it is set up"),
    (7, "it does what I hoped for"),
    (7, "the price is fair"),
    (8, "setup was easy and quick"),
    (8, "support answered within the hour"),
    (9, "I would buy it again tomorrow"),
    (9, "our heating bill fell by a third"),
    (10, "it is the best thing in our house"),
    (10, "everybody here adores it"),
]
OPENERS = [
    "Hello,",
    "Hi there,",
    "Good morning,",
    "To whom it may concern,",
    "Dear team,",
    "Quick note:",
    "Hey,",
    "Once more:",
]
SENTENCES = [  # {P}: a product, {O}: an order, {W}: a place
    "my {P} from order {O} does not switch on",
    "please send the {P} to {W} instead",
    "where is {O} , it should be in {W} by now",
    "the {P} and the {P} do not find each other",
    "I moved to {W} and want to take my {P} along",
    "order {O} lacks the {P}",
    "can a {P} be bought in {W}",
    "I return {O} because the {P} hums",
    "is there anybody in {W} who mounts a {P}",
    "the courier took {O} back to {W}",
    "nothing works since the update of last night",
    "how do I change my password",
]
PRODUCTS = ["Hearth", "Ember", "Brook", "Gale", "Lumen", "Cove", "Lumen Dawn", "Brook Pro"]
PLACES = ["Lisbon", "Bad Ems", "Porto", "Oslo", "Ghent", "New Ross", "Turku", "Le Mans", "Graz", "Ystad"]


def several(draw: random.Random) -> dict[str, object]:
    topics = draw.sample(sorted(TOPICS), draw.choice([1, 1, 2, 2, 3]))
    phrases = [draw.choice(TOPICS[topic]) for topic in topics]
    return {"text": f"{draw.choice(OPENERS)} {'; '.join(phrases)}.", "label": sorted(topics)}


def graded(draw: random.Random) -> dict[str, object]:
    chosen = draw.sample(FEELINGS, 2)
    near = min((one for one in FEELINGS if one not in chosen), key=lambda one: abs(one[0] - chosen[0][0]))
    chosen.append(near)  # people who are content mostly stay so
    draw.shuffle(chosen)
    text = ". ".join(words.capitalize() for _, words in chosen)
    return {"text": f"{draw.choice(OPENERS)} {text}.", "label": round(sum(grade for grade, _ in chosen) / 3, 1)}


def tagged(draw: random.Random) -> dict[str, object]:
    tokens: list[str] = []
    tags: list[str] = []
    for sentence in draw.sample(SENTENCES, draw.choice([1, 2])):
        for word in sentence.split():
            kind = {"{P}": "PRODUCT", "{O}": "ORDER", "{W}": "PLACE"}.get(word)
            names = {"PRODUCT": PRODUCTS, "PLACE": PLACES, "ORDER": [f"TW-{draw.randrange(10000, 99999)}"]}
            words = draw.choice(names[kind]).split() if kind else [word]
            tokens += words
            tags += [f"{'I' if number else 'B'}-{kind}" if kind else "O" for number in range(len(words))]
        tokens.append(".")
        tags.append("O")
    return {"tokens": tokens, "tags": tags}


if __name__ == "__main__":
    for name, make, count in [("topics", several, 200), ("content", graded, 200), ("names", tagged, 200)]:
        draw, rows = random.Random(name), {}
        while len(rows) < count:
            row = json.dumps(make(draw))
            rows[row] = None
        Path(__file__).with_name(f"{name}.jsonl").write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
