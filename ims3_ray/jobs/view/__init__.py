"""The runs of a storage in a browser: read from it and from MLflow, and nothing written.

command.py    the words, the socket, the address with its token, the server
app.py        addresses and what answers them
gate.py       who is let in: the token, the Host, and what browsers are told to forbid
catalogue.py  the runs, and the artefacts of one
listing.py    the list, a row a run
stages.py     how far a run has come, also while it goes
pictures.py   images of a run as pages show them: its set, a class's candidates, refinement
compare.py    two runs side by side
"""
