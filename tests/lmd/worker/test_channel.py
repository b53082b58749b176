import socket
import threading

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmd.generation import SamplingParams
from lmd.worker.channel import BadFrame, Channel, ChannelClosed, FrameDecoder, encode_frame
from lmd.worker.messages import Cancel, Detokenize, FromWorker, Generate, Output, PromptText, Step, Text, ToWorker


def test_every_split_of_a_stream_gives_the_same_frames():
    stream = b"".join(encode_frame(m) for m in (Cancel(1), Text(2, "é" * 200), Cancel(3)))
    whole = FrameDecoder().feed(stream)
    assert len(whole) == 3
    for at in range(len(stream) + 1):
        decoder = FrameDecoder()
        assert decoder.feed(stream[:at]) + decoder.feed(stream[at:]) == whole


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_any_pieces_give_the_same_frames(payloads, data):
    stream = b"".join(bytes(encode_frame(msgspec.Raw(p))) for p in payloads)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    decoder = FrameDecoder()
    got = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += decoder.feed(stream[start:end])
    assert got == payloads
    assert decoder.pending == 0


def test_an_announced_length_above_the_bound_is_refused_before_it_is_buffered():
    decoder = FrameDecoder(max_frame=10)
    assert decoder.feed(b"\x0a\x00\x00\x00" + b"x" * 10) == [b"x" * 10]
    with pytest.raises(BadFrame, match="11 bytes"):
        decoder.feed(b"\x0b\x00\x00\x00")


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, Channel(theirs, ToWorker)


def test_poll_gives_all_that_arrived_and_nothing_when_there_is_nothing(pair):
    ours, channel = pair
    assert channel.poll(0) == []
    generate = Generate(7, [PromptText("hi")], SamplingParams(temperature=0.5, stop=("a",)))
    ours.sendall(encode_frame(generate) + encode_frame(Cancel(7)) + encode_frame(Detokenize(8, [1]))[:-1])
    assert channel.poll(None) == [generate, Cancel(7)]
    assert channel.poll(0.01) == []
    ours.sendall(encode_frame(Detokenize(8, [1]))[-1:])
    assert channel.poll(None) == [Detokenize(8, [1])]


def test_messages_sent_before_the_end_are_given_before_the_end_is_told(pair):
    ours, channel = pair
    ours.sendall(encode_frame(Cancel(1)))
    ours.close()
    assert channel.poll(None) == [Cancel(1)]
    with pytest.raises(ChannelClosed):
        channel.poll(None)


@pytest.mark.parametrize(
    "frame",
    [
        b"\xff\xff\xff\xff",
        b"\x01\x00\x00\x00\xc1",
        bytes(encode_frame(Text(1, "no"))),
        bytes(encode_frame(Cancel(1))).replace(b"cancel", b"canc\xffl"),  # msgspec's error is UnicodeDecodeError then
        bytes(encode_frame(msgspec.Raw(b"\x91" * 100_000 + b"\xc0"))),
    ],
)
def test_what_is_no_message_is_refused(pair, frame):
    ours, channel = pair
    ours.sendall(frame)
    with pytest.raises(BadFrame):
        channel.poll(None)


def test_two_ends_that_send_more_than_the_socket_holds_do_not_lock_each_other():
    """Both only send until they are done: each must take in what the other sends meanwhile."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        daemon = Channel(ours, FromWorker)
        worker = Channel(theirs, ToWorker)
        text = "x" * 100_000
        count = 50

        taken = []

        def send_all_then_take_all():
            for id in range(count):
                worker.send(Step([Output(id, text, 1)]))
            while len(taken) < count:
                taken.extend(worker.poll(None))

        thread = threading.Thread(target=send_all_then_take_all)
        thread.start()
        for id in range(count):
            daemon.send(Generate(id, [PromptText(text)], SamplingParams()))
        got = []
        while len(got) < count:
            got += daemon.poll(None)
        thread.join()
    assert [step.outputs[0].id for step in got] == list(range(count))
    assert [generate.id for generate in taken] == list(range(count))
    assert all(step.outputs[0].text == text for step in got)


def test_sending_to_a_peer_that_is_gone_says_so(pair):
    ours, channel = pair
    ours.close()
    with pytest.raises(ChannelClosed):
        for _ in range(3):
            channel.send(Text(1, "x"))
