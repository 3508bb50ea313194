import gc
import threading

from dolmen.buffers import Buffers

SIZE = 1 << 16


def marks(buffers: Buffers, count: int) -> set[int]:
    """What is in `count` buffers taken one after the other, each marked and let go at once."""
    seen = set()
    for mark in range(1, count + 1):
        buffer = buffers.take()
        seen.add(buffer[0])
        buffer[0] = mark
        del buffer
    return seen


def test_a_buffer_that_nobody_holds_is_used_again():
    buffers = Buffers(SIZE, spare=2)
    assert marks(buffers, 4) == {0, 1, 2, 3}


def test_a_buffer_is_left_alone_as_long_as_anybody_holds_a_view_of_it():
    buffers = Buffers(SIZE, spare=4)
    held = [buffers.take()[at : at + 9] for at in range(20)]
    for number, view in enumerate(held):
        view[:] = bytes([number]) * 9
    for _ in range(20):
        buffers.take()[:] = bytes([255]) * SIZE
    assert all(bytes(view) == bytes([number]) * 9 for number, view in enumerate(held))


def test_no_more_than_the_spare_ones_are_kept():
    buffers = Buffers(SIZE, spare=3)
    held = [buffers.take() for _ in range(10)]
    assert len(buffers._kept) == 3
    del held
    gc.collect()
    assert len({id(buffers.take().obj) for _ in range(10)}) <= 3


def test_threads_never_get_the_same_buffer():
    buffers = Buffers(SIZE, spare=3)
    wrong = []

    def work(mark: int) -> None:
        for _ in range(500):
            buffer = buffers.take()
            buffer[:100] = bytes([mark]) * 100
            again = buffers.take()
            again[:100] = bytes([mark + 100]) * 100
            if bytes(buffer[:100]) != bytes([mark]) * 100:
                wrong.append(mark)

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
