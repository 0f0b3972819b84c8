"""The mathematics in plain torch, numpy and faiss: no Ray, files, configuration or global random state."""
