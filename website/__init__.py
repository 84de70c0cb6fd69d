"""The website: pages from executed notebooks, records, docs/ and docstrings, which Sphinx makes HTML of. `make site`."""
