"""The data sets of the papers: from the files as published to canonical ones, streamed, resumable, with provenance.

raw_files    found, unpacked, hashed -> blocks of text
delimited, lines, records, idomaar, columnar    one format family each: block -> columns as written
cells        columns as written -> ids, times and values that obey their laws
parts        the work folder: one finished part a block, so that an interrupted preparation goes on
deal         ids encoded, events dealt to buckets of whole users that fit in memory
shape        the filters of a protocol, counted and applied bucket by bucket
pipeline     all of it in order; registry: which data sets there are
"""
