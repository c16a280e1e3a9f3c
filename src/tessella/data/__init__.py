"""Data: a folder, tar or table of captioned images, checked, cached and split.

settings   how data is read             records   the pictures of a source, not yet decoded
sources    recognises DATA's kind       shards, scenes   two of the kinds
survey     how a folder has captions    pairing   which picture has which
    from sidecars, siblings, tables (table_rows, annotations, picture_index) or folders' names
decode     turns pictures into pixels   cache     pixels and captions on disk
split      which images are held out    prepare   all of it in one call
inspect    reports on DATA and its problems
"""
