"""Requests on plain sockets, as `attacks/http_requests.py` sends them; the model that they ask answers y = 3 * x."""

from __future__ import annotations

from tests.scripts import load_script

attacks = load_script("attacks/http_requests.py")
Peer, parse_address, request = attacks.Peer, attacks.parse_address, attacks.request

INFER = "/v2/models/scale/infer"
BODY = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'
OUTPUTS = [{"name": "y", "datatype": "FP32", "shape": [1, 4], "data": [3.0, 6.0, 9.0, 12.0]}]
