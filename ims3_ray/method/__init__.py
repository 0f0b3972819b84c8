"""The paper in plain torch, numpy and faiss: no Ray, files, configuration, logging or global random state."""
