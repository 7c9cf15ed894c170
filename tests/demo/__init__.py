"""`make demo`: the whole product on one machine, in a few minutes, with every restore compared byte by byte."""
