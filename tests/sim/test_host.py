"""The link driver against the NumPy twin of the core behind real frames, with every kind of fault on the way."""

import os
import threading
import tty
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from tritloom.boards import host as host_module
from tritloom.boards.host import Host, SerialTransport, has_whole_frame
from tritloom.errors import LinkError, MissingToolError
from tritloom.hw.arch.isa import PROGRAM_WORD_BYTES
from tritloom.hw.arch.link import END, ERROR_OPCODE, MAX_DATA, ErrorCode, Fault, Frame, LinkOpcode, Space, State, encode
from tritloom.hw.arch.parameters import CoreParameters

DIGEST = bytes(range(8, 16))


def loaded(model_transport, schedule, spoil=None):
    transport = model_transport(schedule.parameters, spoil)
    host = Host(transport, timeout=0.01)
    host.load(schedule, DIGEST)
    return host, transport


def sample(codes, index):
    return {name: values[index] for name, values in codes.items()}


def assert_tensors(tensors, expected, index):
    for name, values in tensors.items():
        np.testing.assert_array_equal(values, expected[name][index], err_msg=name)


def test_identity_tells_core_and_artefact(model_transport, schedule):
    host, _ = loaded(model_transport, schedule)
    assert host.identity() == (schedule.parameters.digest, DIGEST)


def test_inference_gives_goldens_outputs_and_the_schedules_cycles(model_transport, program, schedule, codes, expected):
    host, _ = loaded(model_transport, schedule)
    names = [spec.tensor for spec in program.outputs]
    for index in range(3):
        outputs, cycles = host.infer(schedule, sample(codes, index), names)
        assert list(outputs) == names
        assert_tensors(outputs, expected, index)
        assert cycles == schedule.cycles


def test_trace_reads_every_tensor_and_counts_the_cycles_with_stops(model_transport, program, schedule, codes, expected):
    host, _ = loaded(model_transport, schedule)
    tensors, cycles = host.trace(schedule, program, sample(codes, 0))
    assert set(tensors) == set(expected)
    assert_tensors(tensors, expected, 0)
    assert cycles == schedule.stopped_cycles > schedule.cycles


def test_frames_carry_whole_words(model_transport, schedule):
    """Words of 12 bytes do not divide a frame's 1011."""
    parameters = replace(schedule.parameters, weight_words=300)
    weights = np.random.default_rng(0).integers(0, 256, (300, parameters.weight_word_bytes), np.uint8)
    _, transport = loaded(model_transport, replace(schedule, parameters=parameters, weights=weights))
    word = {
        Space.PROGRAM: PROGRAM_WORD_BYTES, Space.WEIGHTS: parameters.weight_word_bytes, Space.RECORDS: parameters.record_word_bytes,
        Space.ARTEFACT: 8,
    }  # fmt: skip
    writes = [frame for frame in transport.requests if frame.opcode == LinkOpcode.WRITE]
    assert sum(frame.data[0] == Space.WEIGHTS for frame in writes) == 4
    for frame in writes:
        assert (len(frame.data) - 5) % word[Space(frame.data[0])] == 0
        assert len(frame.data) <= MAX_DATA
    stored = b"".join(frame.data[5:] for frame in writes if frame.data[0] == Space.WEIGHTS)
    assert stored == weights.tobytes()


@pytest.mark.parametrize("count", [0, 1, 7, 959, 960, 961, 1016, 1017, 2500])
def test_reads_and_writes_of_any_length(model_transport, count):
    transport = model_transport(CoreParameters(rows=8, activation_words=512))
    host = Host(transport)
    data = Random(count).randbytes(count)
    host.write(Space.ACTIVATIONS, 11, data)
    assert host.read(11, count) == data
    assert transport.model.read(0, 11) == bytes(11)


def test_partial_words_and_unknown_words_are_refused(model_transport, schedule):
    host = Host(model_transport(schedule.parameters))
    with pytest.raises(LinkError, match=r"^data for PROGRAM must be whole words of 8 bytes, not 6 bytes$"):
        host.write(Space.PROGRAM, 0, bytes(6))
    with pytest.raises(LinkError, match=r"^the word size of WEIGHTS is not known"):
        host.write(Space.WEIGHTS, 0, bytes(16))


def test_another_core_is_refused(model_transport, schedule):
    transport = model_transport(CoreParameters(rows=4, columns=4))
    with pytest.raises(
        LinkError, match=rf"^the core has digest {transport.model.parameters.digest.hex()}, but .* {schedule.parameters.digest.hex()}"
    ):
        Host(transport).load(schedule, DIGEST)
    assert [frame.opcode for frame in transport.requests] == [LinkOpcode.IDENTITY]


@pytest.mark.parametrize("seed", range(8))
def test_damaged_and_lost_answers_do_not_matter(model_transport, program, schedule, codes, expected, seed):
    random = Random(seed)

    def spoil(frame, reply):
        kind = random.random()
        if kind < 0.02:
            return b""
        if kind < 0.04:
            return reply[: random.randrange(len(reply))]
        if kind < 0.06:
            place = random.randrange(len(reply))
            return reply[:place] + bytes([reply[place] ^ 1 << random.randrange(8)]) + reply[place + 1 :]
        if kind < 0.07:
            return encode(Frame(frame.sequence, ERROR_OPCODE, bytes([ErrorCode.CRC])))
        if kind < 0.08:
            return b"\x00\xffnoise" + reply
        return reply

    host, _ = loaded(model_transport, schedule, spoil)
    tensors, cycles = host.trace(schedule, program, sample(codes, 1))
    assert_tensors(tensors, expected, 1)
    assert cycles == schedule.stopped_cycles


def test_a_lost_answer_to_start_repeats_the_whole_inference(model_transport, program, schedule, codes, expected):
    lost = []

    def spoil(frame, reply):
        if frame.opcode == LinkOpcode.START and not lost:
            lost.append(frame)
            return b""
        return reply

    host, transport = loaded(model_transport, schedule, spoil)
    before = len(transport.requests)
    outputs, _ = host.infer(schedule, sample(codes, 0), [spec.tensor for spec in program.outputs])
    assert_tensors(outputs, expected, 0)
    assert transport.runs == 2
    # The inputs are written again before the second START: the first run may have overwritten them.
    kinds = [LinkOpcode(frame.opcode).name for frame in transport.requests[before:]]
    first, second = (index for index, kind in enumerate(kinds) if kind == "START")
    assert "WRITE" in kinds[first:second]


def test_late_answers_are_passed_over(model_transport, schedule):
    held = []

    def spoil(frame, reply):
        held.append(reply)
        return held[-2] + reply if len(held) > 1 else reply

    host = Host(model_transport(schedule.parameters, spoil))
    for _ in range(300):
        assert host.identity()[0] == schedule.parameters.digest
        assert host.status().state == State.IDLE


def test_a_silent_core_is_an_error(model_transport, schedule):
    transport = model_transport(schedule.parameters, lambda frame, reply: b"")
    with pytest.raises(LinkError, match=r"^the core gave no undamaged answer to STATUS in 4 attempts$"):
        Host(transport, timeout=0.01).status()
    assert len(transport.requests) == 4


def test_endless_noise_is_an_error(model_transport, schedule):
    class Noise(model_transport):
        def exchange(self, data, *, timeout):
            return bytes([END, 1, 2, 3, END])

    with pytest.raises(LinkError, match=r"^the core gave no undamaged answer"):
        Host(Noise(schedule.parameters), timeout=0.01).status()


def test_something_else_on_the_port_is_named(model_transport, schedule):
    transport = model_transport(schedule.parameters, lambda frame, reply: encode(Frame(frame.sequence, 0x99, b"hello")))
    with pytest.raises(LinkError, match=r"^the core answered STATUS with opcode 0x99 and 5 bytes instead of 0x82 and 12"):
        Host(transport).status()


def test_unknown_states_are_refused(model_transport, schedule):
    transport = model_transport(schedule.parameters, lambda frame, reply: encode(Frame(frame.sequence, 0x82, b"\x09" + bytes(11))))
    with pytest.raises(LinkError, match=r"^the core reported state 9 and fault 0"):
        Host(transport).status()


def test_a_core_that_never_ends_is_stopped(model_transport, program, schedule, codes):
    host, transport = loaded(model_transport, schedule)

    def run(pc=0, limit=0, *, clear=True):
        transport.model.state = State.RUNNING

    transport.model.run = run
    with pytest.raises(LinkError, match=r"^the core still ran at program word"):
        host.infer(schedule, sample(codes, 0), [])
    assert transport.model.state == State.IDLE


def test_a_fault_is_named(model_transport, schedule, codes):
    host, _ = loaded(model_transport, schedule)
    host.write(Space.PROGRAM, 0, b"\x77" + bytes(7))
    with pytest.raises(LinkError, match=r"^the core stopped with fault BAD_INSTRUCTION at program word 0$"):
        host.infer(schedule, sample(codes, 0), [])
    assert host.status().fault == Fault.BAD_INSTRUCTION


def test_busy_is_an_error(model_transport, schedule):
    host, transport = loaded(model_transport, schedule)
    transport.model.state = State.RUNNING
    with pytest.raises(LinkError, match=r"^the core refused START with error BUSY$"):
        host.start()


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"", False),
        (b"\xc0", False),
        (b"\xc0\xc0", False),
        (b"a\xc0", False),
        (b"\xc0a", False),
        (b"\xc0a\xc0", True),
        (b"x\xc0\xc0\xc0a\xc0", True),
    ],
)
def test_whole_frames_are_recognised(data, whole):
    assert has_whole_frame(data) is whole


def test_serial_port(model_transport, program, schedule, codes, expected):
    """Over a pseudo-terminal, which passes bytes like a serial port."""
    master, slave = os.openpty()
    tty.setraw(master)
    tty.setraw(slave)
    core = model_transport(schedule.parameters)

    def serve():
        while True:
            try:
                data = os.read(master, 256)
            except OSError:
                return
            reply = core.exchange(data, timeout=0)
            while reply:
                written = os.write(master, reply[:100])
                reply = reply[written:]

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    host = Host(SerialTransport(os.ttyname(slave), 1_000_000))
    host.load(schedule, DIGEST)
    outputs, cycles = host.infer(schedule, sample(codes, 2), [spec.tensor for spec in program.outputs])
    assert_tensors(outputs, expected, 2)
    assert cycles == schedule.cycles
    host.close()
    os.close(slave)
    thread.join(timeout=5)
    os.close(master)
    assert not thread.is_alive()


def test_serial_port_that_does_not_exist():
    with pytest.raises(LinkError, match=r"^serial port /dev/no-such-port cannot be opened"):
        SerialTransport("/dev/no-such-port", 115_200)


def test_missing_pyserial_names_the_command(monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(host_module, "import_module", absent)
    with pytest.raises(MissingToolError, match=r"^pyserial is not installed: pip install 'tritloom\[board\]'$"):
        SerialTransport("/dev/ttyUSB0", 115_200)
