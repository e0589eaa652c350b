"""The hand-written part of the wire format against protobuf's own reading, both ways."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb

from weir.inference._wire import DTYPES, Malformed, RequestWriter, read_response


@given(st.integers(1, 2000), st.integers(1, 40))
def test_protobuf_reads_the_request_that_we_write(row_count, width):
    features = np.arange(row_count * width, dtype=np.float32).reshape(row_count, width)
    data = RequestWriter("risk", "3", "features", ["logit", "contributions"]).write(features)
    request = pb.ModelInferRequest.FromString(data)
    assert (request.model_name, request.model_version) == ("risk", "3")
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("features", "FP32", [row_count, width])
    assert [output.name for output in request.outputs] == ["logit", "contributions"]
    assert list(request.raw_input_contents) == [features.tobytes()]


def answer(tensors: dict[str, tuple[str, np.ndarray]], version: str = "1") -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name="risk", model_version=version, id="x")
    response.parameters["sequence_id"].int64_param = 5
    for name, (datatype, array) in tensors.items():
        response.outputs.add(name=name, datatype=datatype, shape=array.shape)
        response.raw_output_contents.append(array.tobytes())
    return response


@given(
    st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.integers(0, 300), st.integers(1, 5)), max_size=4)
)
def test_we_read_the_response_that_protobuf_writes(tensors):
    random = np.random.default_rng(1)
    sent = {
        f"t{i}": (name, random.integers(0, 2, (rows, width)).astype(DTYPES[name]))
        for i, (name, rows, width) in enumerate(tensors)
    }
    version, got = read_response(answer(sent, "7").SerializeToString())
    assert version == "7"
    assert list(got) == list(sent)
    for name, (_, array) in sent.items():
        np.testing.assert_array_equal(got[name], array)
        assert got[name].dtype == array.dtype


def test_tensors_are_views_not_copies():
    data = answer({"logit": ("FP32", np.ones((1024, 26), np.float32))}).SerializeToString()
    _, got = read_response(data)
    assert np.shares_memory(got["logit"], np.frombuffer(data, np.uint8))


@given(st.binary(max_size=200))
def test_random_bytes_are_malformed_or_a_response(data):
    try:
        read_response(data)
    except Malformed:
        return


@given(st.data())
def test_a_truncated_response_is_malformed_or_lacks_tensors(data):
    whole = answer({"a": ("FP32", np.ones((3, 2), np.float32)), "b": ("INT64", np.ones(3, np.int64))})
    full = whole.SerializeToString()
    cut = full[: data.draw(st.integers(0, len(full) - 1))]
    try:
        _, got = read_response(cut)
    except Malformed:
        return
    assert len(got) < 2


@pytest.mark.parametrize(
    ("datatype", "shape", "raw", "says"),
    [
        ("BYTES", [1], b"abcd", "not a plain number"),
        ("FP32", [2], b"abcd", "4 bytes for shape"),
        ("FP32", [-1, -1], b"abcd", "4 bytes for shape"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_malformed(datatype, shape, raw, says):
    response = pb.ModelInferResponse(model_name="m", raw_output_contents=[raw])
    response.outputs.add(name="t", datatype=datatype, shape=shape)
    with pytest.raises(Malformed, match=says):
        read_response(response.SerializeToString())


def test_an_output_without_raw_bytes_is_malformed():
    response = pb.ModelInferResponse(model_name="m")
    response.outputs.add(name="t", datatype="FP32", shape=[1]).contents.fp32_contents.append(1.0)
    with pytest.raises(Malformed, match="1 outputs, 0 of them"):
        read_response(response.SerializeToString())
