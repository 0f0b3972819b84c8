"""Sweeps: many runs of one recipe with fields changed, by Ray Tune; each is scored on validation images.

space.py      what varies, out of the words after --space
plan.py       `Sweep`: which trials that makes, and the configuration of each
run.py        the whole of it, in the driver: check, announce, make the pools that are known, tune, publish
tuning.py     Ray Tune: the searcher, early stopping, what calls a trial
trial.py      one trial, in a process of its own; keeper.py, the actor that makes what trials share
records.py    `Trial`: the file that says how far one came, by which a sweep goes on
scribe.py     MLflow's only writer, in the driver
document.py   sweep.json and sweep.csv, out of the records
page.py       index.html, out of the document: results.py, claim.py, plots.py, heat.py
"""
