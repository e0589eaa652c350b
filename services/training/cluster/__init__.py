"""Features, search and fits on more than one machine, by Dask: this process asks, its workers compute."""
