"""How the pages of measurements are made: files, tables, charts, and the prose around them.

    files.py         docs/data/*.json: which there may be, how each is made, one per processor
    tables.py        from files to Markdown tables, on a CPU
    gpu.py           the same for the page about GPUs
    charts.py        from files to pictures
    *.jinja          the pages: prose that asks for all of these

`docs/make_performance.py` puts them together.
"""
