"""gRPC requests as HTTP/2 frames on plain sockets, as `attacks/http2_frames.py` sends them."""

from argosy.serve.grpc.messages import ModelInferRequest
from tests.scripts import load_script

h2 = load_script("attacks/http2_frames.py")
floods = load_script("attacks/http2_floods.py")
INFER_BLOCK = floods.INFER
U32 = h2.U32


def make_message(num_floats=4, model="any"):
    request = ModelInferRequest(model_name=model)
    request.inputs.add(name="x", datatype="FP32", shape=[1, num_floats])
    request.raw_input_contents.append(bytes(4 * num_floats))
    data = request.SerializeToString()
    return b"\0" + U32(len(data)) + data


def infer(stream=1, num_floats=4, model="any"):
    message = make_message(num_floats, model)
    out = h2.headers(stream, INFER_BLOCK)
    for pos in range(0, len(message), 16384):
        piece = message[pos : pos + 16384]
        out += h2.frame(h2.DATA, h2.END_STREAM if pos + 16384 >= len(message) else 0, stream, piece)
    return out


def read_answer(peer, stream=1):
    """Read a whole answer; return its body and the sizes of its DATA frames."""
    body, sizes = b"", []
    while (found := peer.find(h2.HEADERS, h2.DATA, stream=stream)) is not None:
        if found.kind == h2.DATA:
            body += found.payload
            sizes.append(len(found.payload))
        if found.flags & h2.END_STREAM:
            return body, sizes, found.payload
    raise AssertionError("no answer")


def read_status(block):
    return int(floods.read_status(block))
