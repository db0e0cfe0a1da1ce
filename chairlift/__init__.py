"""chairlift: large language models served by continuous batching.

`frontend`, `worker` and `shared` in this folder are links to the folders beside it, so that one
checkout can be edited, type-checked and run under the import name `chairlift`; the wheel and the
sdist are built from the real folders.
"""

__version__ = "0.1.0"
