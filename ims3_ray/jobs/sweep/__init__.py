"""Sweeps by Ray Tune: searches over recipe fields, and comparisons of named rows with paired statistics.

plan.py            `Sweep` and `RowSweep`: the trials, and each trial's configuration; search_space.py, rows/
run.py             the whole of it in the driver: check, make what trials share, tune, publish
tuner.py           Ray Tune: search algorithm, scheduler, the actor that makes what trials share
trial.py           a trial: its record, by which a sweep resumes, and its run
mlflow_callback.py the only writer to MLflow, in the driver
results.py         sweep.json and sweep.csv, from the records; row_metrics.py and comparison.py for rows
page.py            index.html; plots.py; tables.py for the terminal and Markdown
"""
