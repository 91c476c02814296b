"""Keep versions: content-addressed artifacts, names, aliases, lineage.

local.py        Store: publish, find, open; the place to start
manifest.py     what describes a version: OCI manifest, ModelPack config, `Manifest`, `Version`
staging.py      files on their way in, under temporary names
blobs.py        the OCI layout on disk: blobs by digest, unpacked folders
database.py     the SQLite file: schema, transactions
records.py      its rows, references, the derived index
golden.py       recorded examples
preprocess.py   what a version says of preprocessing, tried
temporary.py    folders that go whatever happens
"""
