"""The paper in plain torch, numpy and faiss: no Ray, no files, no configuration, no logging, no global random
state.
"""
