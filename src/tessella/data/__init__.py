"""Data: a folder, tar or table of captioned images, checked, cached and split.

    settings   how data is read             records   the pictures of a source, not yet decoded
    sources    recognises DATA's kind       folders, shards, tables, scenes   the kinds
    decode     turns a picture into pixels  workers   several processes decode, in order
    cache      pixels and captions on disk  split     which images are held out for validation
    prepare    all of it in one call        inspect   reports on DATA and its problems

Nothing is imported here, so that a decoding process loads only what it needs.
"""
