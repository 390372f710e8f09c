"""`flame demo`: two small models trained eagerly and compiled, side by side.

data.py     the images and the text              models.py  the two networks
tasks.py    what is trained, on what, how long   train.py   one training run, measured
svg.py      plots                                report.py  the table, the kernels, the HTML page
main.py     the command
"""
