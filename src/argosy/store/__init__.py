"""Keep versions: content-addressed artifacts, names, aliases, lineage.

local.py        Store: publish, find, open; the place to start
manifest.py     what describes a version: OCI manifest, ModelPack config, `Manifest`, `Version`
staging.py      files on their way in, under temporary names
blobs.py        the OCI layout on disk: blobs by digest, unpacked folders
database.py     the SQLite file: schema, transactions
records.py      its rows, references, the derived index
golden.py       recorded examples
onnx_file.py    import of an ONNX file, with golden_run.py
python_file.py  publishing of a Python model
oci.py          push and pull: to registries and from them
artifact.py     what is asked of an artifact that comes from elsewhere
registry.py     a client of the OCI Distribution protocol, over registry_connection.py and registry_auth.py
location.py     references to registries, parsed
credentials.py  who we are to a registry
"""
