"""What a run does with a teacher, called by the steps of the pipeline: find it, cut a student from it, learn from it, stand beside it."""

from burnish.distillation.answers import (
    answers_of_teacher,
    ask_teacher,
    endpoint_of,
    nonsense,
    room_for_answers,
    with_answer,
)
from burnish.distillation.beside import beside_teacher
from burnish.distillation.choose import Guide, by_heart, find_guide, source_of_student, student_is_cut, taught
from burnish.distillation.probabilities import with_streams
from burnish.distillation.student import cut_student, feed_of_student, planned_student, seat_teacher

__all__ = [
    "Guide",
    "answers_of_teacher",
    "ask_teacher",
    "beside_teacher",
    "by_heart",
    "cut_student",
    "endpoint_of",
    "feed_of_student",
    "find_guide",
    "nonsense",
    "planned_student",
    "room_for_answers",
    "seat_teacher",
    "source_of_student",
    "student_is_cut",
    "taught",
    "with_answer",
    "with_streams",
]
