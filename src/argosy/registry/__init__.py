"""Push versions to OCI registries and pull them from there, byte for byte.

transfer.py     push and pull; the place to start
artifact.py     what is asked of an artifact that comes from elsewhere
registry.py     a client of the OCI Distribution protocol, over connection.py and auth.py
location.py     references to registries, parsed
credentials.py  who we are to a registry
"""
