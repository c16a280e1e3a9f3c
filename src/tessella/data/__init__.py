"""Data: a folder, tar or table of captioned images, checked, cached and split.

    settings   how data is read                 records   what a source says about one picture
    sources    which kind a DATA argument is    folders, shards, tables, scenes   the kinds
    decode     a picture becomes pixels         workers   several processes decode in order
    cache      pixels and captions on disk      split     which images are kept out of training
    prepare    all of it in one call            inspect   what is in DATA, what is wrong with it

Nothing is imported here, so that a decoding process loads only what it needs.
"""
