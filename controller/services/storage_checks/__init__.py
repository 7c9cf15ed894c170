"""What a storage's settings must look like before they are saved, a file for each type: a place that cannot be, or a key that
cannot be read, is found when it is entered and not at the first backup (S4, S5, S13, S14, S26).

    types.py     the table: config message and checks of each type
    settings.py  what all types have: compression, limits, the encryption's passphrase
"""
