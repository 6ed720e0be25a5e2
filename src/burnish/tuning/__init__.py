"""Hyperparameter tuning: a study of many short trainings, judged on validation alone, and a test of the learning rate.

space       what may vary, checked against the recipe before anything runs
trial       one training by the steps of `pipeline`, and what all trials share
study       the trials of one process after the other, over a storage that several processes share
prove       the winner with further seeds, then, once, against the default recipe on the test rows
range_test  the learning rate that grows until the loss runs away
report      tune.json and the pages
"""
