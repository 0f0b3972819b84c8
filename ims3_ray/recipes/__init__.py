"""Named runs as YAML: pass a recipe's name, or the path of a file like these, to `--recipe`."""
