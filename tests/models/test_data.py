"""Data sets: generated ones against brute force, readers against files written here."""

import gzip
import struct

import numpy as np
import pytest

from tritloom.errors import UserError
from tritloom.models.data import cifar, mazes, mnist, puzzles, sudoku, text
from tritloom.models.data.digits import load as load_digits
from tritloom.models.data.distortion import distort
from tritloom.models.data.pictures import load_pictures


def idx(array: np.ndarray, code: int = 8) -> bytes:
    return bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def pictures():
    rng = np.random.default_rng(3)
    return rng.integers(0, 256, (40, 28, 28)).astype(np.uint8), rng.integers(0, 10, 40).astype(np.uint8)


@pytest.mark.parametrize(("code", "kind"), [(8, ">u1"), (9, ">i1"), (11, ">i2"), (12, ">i4"), (13, ">f4"), (14, ">f8")])
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files(tmp_path, code, kind, packed):
    array = np.random.default_rng(code).integers(-100, 100, (3, 2, 4)).astype(kind)
    content = idx(array, code)
    (tmp_path / "a").write_bytes(gzip.compress(content) if packed else content)
    got = mnist.read_idx(tmp_path / "a")
    assert got.dtype == np.dtype(kind).newbyteorder("=") and got.dtype.isnative and np.array_equal(got, array)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is no IDX file"),
        (b"\0\0\x08\x03\0\0", "is no IDX file"),
        (b"\0\0\x07\x01\0\0\0\x01a", "is no IDX file"),
        (b"\0\0\x08\x01\0\0\0\x02a", "holds 1 bytes of data where its header promises 2"),
        (b"\0\0\x08\x01\0\0\0\x01ab", "holds 2 bytes of data where its header promises 1"),
        (b"\0\0\x08\x02\xff\xff\xff\xff\xff\xff\xff\xff", "promises 18446744065119617025"),
        (gzip.compress(b"\0\0\x08\x01\0\0\0\x01a")[:-9], "is damaged: its gzip data are cut short"),
        (b"\x1f\x8b broken", "is damaged"),
    ],
)
def test_damaged_idx_files(tmp_path, content, sentence):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        mnist.read_idx(tmp_path / "a")


def test_mnist_from_a_folder_and_from_arrays(tmp_path, pictures):
    images, labels = pictures
    for part, suffix in ((slice(30), "train"), (slice(30, 40), "t10k")):
        (tmp_path / f"{suffix}-images-idx3-ubyte").write_bytes(idx(images[part]))
        (tmp_path / f"{suffix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels[part])))
    np.savez(tmp_path / "keras.npz", x_train=images[:30], y_train=labels[:30], x_test=images[30:], y_test=labels[30:])
    np.savez(tmp_path / "tenth.npz", images=images, labels=labels)
    found = [load_pictures(f"{name}:{tmp_path / path}") for name, path in (("fashion-mnist", "."), ("mnist", "keras.npz"))]
    for data in found:
        assert data.train_images.shape == (30, 1, 28, 28) and data.train_images.dtype == np.float32 and data.shape == (1, 28, 28)
        assert np.array_equal(data.train_images[:, 0] * 255, images[:30].astype(np.float32))
        assert np.array_equal(data.test_labels, labels[30:]) and data.test_labels.dtype == np.int64
    tenth = load_pictures(f"mnist:{tmp_path / 'tenth.npz'}")
    assert len(tenth.train_images) == 36 and np.array_equal(tenth.test_labels, labels[36:])
    assert tenth.train_images.max() <= tenth.step * 127


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"pixels": np.zeros(3)}, "must hold images and labels, or .*; it holds pixels$"),
        ({"images": np.zeros((20, 28, 28)), "labels": np.zeros(20, int)}, "must be uint8 .N, 28, 28., not float64"),
        ({"images": np.zeros((20, 8, 8), np.uint8), "labels": np.zeros(20, int)}, "must be uint8 .N, 28, 28., not uint8 .18, 8, 8."),
        ({"images": np.zeros((20, 28, 28), np.uint8), "labels": np.zeros(19, int)}, "labels of .* must be"),
        ({"images": np.zeros((20, 28, 28), np.uint8), "labels": np.full(20, 10)}, "must lie in 0..9, not in 10..10"),
        ({"images": np.zeros((9, 28, 28), np.uint8), "labels": np.zeros(9, int)}, "needs at least 10 rows"),
    ],
)
def test_unfit_arrays(tmp_path, arrays, sentence):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(UserError, match=sentence):
        load_pictures(f"mnist:{tmp_path / 'a.npz'}")


def test_absent_files_and_unknown_names(tmp_path):
    with pytest.raises(UserError, match=r"holds neither train-images-idx3-ubyte nor train-images-idx3-ubyte.gz$"):
        load_pictures(f"mnist:{tmp_path}")
    with pytest.raises(UserError, match=r"data_batch_1\.bin' cannot be read"):
        load_pictures(f"cifar10:{tmp_path}")
    wrong = ("digits:x", "digits:", "digits:random:", "digits:random:-1", "digits:random:1:2", "digits:randoms")
    for name in ("mnst", "mnist", "mnist:", "", *wrong):
        with pytest.raises(UserError, match=r"^data must be one of digits, digits:random\[:SEED\], mnist:PATH"):
            load_pictures(name)


def test_cifar(tmp_path):
    rng = np.random.default_rng(4)
    rows = rng.integers(0, 256, (12, 3073)).astype(np.uint8)
    rows[:, 0] %= 10
    for number in range(5):
        (tmp_path / f"data_batch_{number + 1}.bin").write_bytes(rows[2 * number : 2 * number + 2].tobytes())
    (tmp_path / "test_batch.bin").write_bytes(rows[10:].tobytes())
    data = load_pictures(f"cifar10:{tmp_path}")
    assert data.train_images.shape == (10, 3, 32, 32) and np.array_equal(data.train_labels, rows[:10, 0])
    assert data.test_images[1, 2, 5, 7] == np.float32(rows[11, 1 + 2 * 1024 + 5 * 32 + 7]) / np.float32(255)
    (tmp_path / "test_batch.bin").write_bytes(b"\x80\x04pickled")
    with pytest.raises(UserError, match=r"no multiple of 3073; it must be of the binary version$"):
        cifar.load(tmp_path)
    rows[11, 0] = 10
    (tmp_path / "test_batch.bin").write_bytes(rows[10:].tobytes())
    with pytest.raises(UserError, match=r"has a label 10"):
        cifar.load(tmp_path)


def test_digits_as_pictures():
    data, plain = load_pictures("digits"), load_digits()
    assert np.array_equal(data.train_images, plain.train_images) and data.whole and data.step * 127 >= 16


def test_random_split_of_the_digits():
    """Every row exactly once, whatever the split; other rows held out with another seed, the same ones with the same seed."""
    found = {}
    for name in ("digits", "digits:random", "digits:random:0", "digits:random:1"):
        data = load_pictures(name)
        assert data.train_images.shape == (1400, 1, 8, 8) and data.test_images.shape == (397, 1, 8, 8)
        images, labels = np.concatenate([data.train_images, data.test_images]), np.concatenate([data.train_labels, data.test_labels])
        found[name] = sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)), data
    assert all(rows == found["digits"][0] for rows, _ in found.values()), "labels go with their images"
    held = {name: data.test_images.tobytes() for name, (_, data) in found.items()}
    assert held["digits:random"] == held["digits:random:0"] and len(set(held.values())) == 3
    last = {image.tobytes() for image in load_digits().test_images}
    shared = sum(image.tobytes() in last for image in found["digits:random"][1].test_images)
    assert 50 < shared < 130, "a quarter of the rows would be 88"
    assert found["digits:random:1"][1].name == "scikit-learn load_digits, 1400 rows of a random permutation of seed 1"
    for arguments in (("rows", 0), ("random", -1)):
        with pytest.raises(UserError, match=r"must be"):
            load_digits(arguments[0], seed=arguments[1])


def test_text():
    """All of the text, in order, in codes; the same every time."""
    data, again = text.load("topics"), text.load("topics")
    assert len(data.alphabet) > 80 and len(data.train) > 400_000 and list(data.alphabet) == sorted(set(data.alphabet))
    assert np.array_equal(data.train, again.train)
    from pydoc_data.topics import topics

    first = topics[min(topics)][:200]
    assert "".join(data.alphabet[code] for code in data.train[:200]) == first
    assert abs(len(data.held_out) - (len(data.train) + len(data.held_out)) / 10) < 1
    short = text.load("library", characters=1000)
    assert len(short.train) == 900 and len(short.held_out) == 100
    for corpus, characters in (("books", None), ("topics", 9)):
        with pytest.raises(UserError, match=r"^c(orpus|haracters) must be"):
            text.load(corpus, characters=characters)


def valid(grid: np.ndarray) -> bool:
    size = len(grid)
    box = int(size**0.5)
    boxes = [grid[i : i + box, j : j + box] for i in range(0, size, box) for j in range(0, size, box)]
    return all(sorted(np.ravel(group).tolist()) == list(range(1, size + 1)) for group in (*grid, *grid.T, *boxes))


def test_all_grids_of_4x4():
    grids = sudoku.all_grids()
    assert len(grids) == 288 and len({grid.tobytes() for grid in grids}) == 288 and all(valid(grid) for grid in grids)


def test_small_sudoku_has_one_solution():
    """Against all 288 grids: exactly one agrees with the clues."""
    puzzles, answers = sudoku.generate(60, seed=1)
    grids = sudoku.all_grids()
    for puzzle, answer in zip(puzzles, answers, strict=True):
        fitting = grids[((puzzle == 0) | (grids == puzzle)).all((1, 2))]
        assert len(fitting) == 1 and np.array_equal(fitting[0], answer)
    clues = (puzzles > 0).sum((1, 2))
    assert set(clues) >= {4, 5, 6, 7} and clues.max() <= 7
    assert len({answer.tobytes() for answer in answers}) > 40
    assert np.array_equal(sudoku.generate(60, seed=1)[0], puzzles) and not np.array_equal(sudoku.generate(60, seed=2)[0], puzzles)


def test_puzzles_of_chosen_grids():
    """The given grids only, as many clues as asked for, one solution; a puzzle of 4 clues needs many draws."""
    grids = sudoku.all_grids()[[5, 100, 287]]
    puzzles, answers = sudoku.puzzles_of(grids, 120, clues=(4, 6), seed=3)
    assert {bytes(grid) for grid in answers} == {bytes(grid) for grid in grids}
    assert set((puzzles > 0).sum((1, 2)).tolist()) == {4, 5, 6}
    for puzzle, answer in zip(puzzles, answers, strict=True):
        assert np.array_equal(next(sudoku.solutions(puzzle)), answer) and len(list(sudoku.solutions(puzzle))) == 1
    assert np.array_equal(sudoku.puzzles_of(grids, 120, clues=(4, 6), seed=3)[0], puzzles)
    for clues in ((3, 5), (6, 5), (4, 17)):
        with pytest.raises(UserError, match=r"within 4\.\.16"):
            sudoku.puzzles_of(grids, 1, clues=clues, seed=0)


@pytest.mark.parametrize("size", [4, 9])
def test_shuffled_puzzles_stay_puzzles(size):
    puzzles, answers = sudoku.generate(3, size=size, clues=(size, 3 * size), seed=size)
    puzzles, answers = (np.repeat(part, 4, axis=0) for part in (puzzles, answers))
    found = sudoku.shuffled(puzzles, answers, np.random.default_rng(0))
    assert sudoku.shuffled(puzzles[:0], answers[:0], np.random.default_rng(0))[0].shape == (0, size, size)
    for puzzle, answer, old in zip(*found, puzzles, strict=True):
        assert [solution.tolist() for solution in sudoku.solutions(puzzle)] == [answer.tolist()]
        assert np.count_nonzero(puzzle) == np.count_nonzero(old) and not np.array_equal(puzzle, old)
    assert np.array_equal(sudoku.shuffled(puzzles, answers, np.random.default_rng(0))[0], found[0])


def test_data_sets_of_puzzles():
    """No held-out answer occurs in training, clues stay in the answer, and the seed decides."""
    for name, count, symbols in (("sudoku4", 900, 5), ("sudoku9", 3, 10), ("maze", 300, 5)):
        data = puzzles.load_puzzles(name, count=count, held_out=max(2, count // 10), seed=1)
        assert data.symbols == symbols and data.train.shape[1] == data.cells == data.size**2 and len(data.test) == max(2, count // 10)
        assert not {bytes(row) for row in data.train_answers} & {bytes(row) for row in data.test_answers}, name
        given = data.train > (1 if name == "maze" else 0)
        assert np.array_equal(data.train[given], data.train_answers[given]) and (data.train != data.train_answers).any()
        assert max(data.train_answers.max(), data.train.max()) == symbols - 1
        again, other = (puzzles.load_puzzles(name, count=count, held_out=max(2, count // 10), seed=seed) for seed in (1, 2))
        assert np.array_equal(again.train, data.train) and not np.array_equal(other.train[:9], data.train[:9])
    maze = puzzles.load_puzzles("maze", count=5, held_out=2, seed=0)
    for row, answer in zip(maze.train, maze.train_answers, strict=True):
        way = mazes.shortest(row.reshape(11, 11) == 0).ravel()
        assert np.array_equal(answer, np.where(way & (row == 1), 4, row)) and (row == 2).sum() == (row == 3).sum() == 1
    with pytest.raises(UserError, match=r"^data must be one of sudoku4, sudoku9, maze, not 'sudoku'$"):
        puzzles.load_puzzles("sudoku", seed=0)


def test_large_sudoku_has_one_solution():
    puzzles, answers = sudoku.generate(3, size=9, clues=(26, 34), seed=5)
    for puzzle, answer in zip(puzzles, answers, strict=True):
        assert valid(answer)
        found = list(sudoku.solutions(puzzle))
        assert len(found) == 1 and np.array_equal(found[0], answer)
        assert 26 <= (puzzle > 0).sum() <= 40


def test_solver_on_known_cases():
    twice = np.array([[1, 2, 3, 4], [3, 4, 1, 2], [0, 0, 4, 3], [4, 3, 0, 0]])
    assert len(list(sudoku.solutions(twice, limit=10))) == 1
    twice[2:, :] = 0
    assert len(list(sudoku.solutions(twice, limit=10))) == 4 and len(list(sudoku.solutions(twice))) == 2
    assert not list(sudoku.solutions(np.array([[1, 1, 0, 0], [0] * 4, [0] * 4, [0] * 4])))
    for bad in (np.zeros((5, 5), int), np.zeros(4, int), np.full((4, 4), 5), np.zeros((4, 4))):
        with pytest.raises(UserError, match=r"^a puzzle is an array of 4x4 or 9x9"):
            list(sudoku.solutions(bad))
    for arguments in ({"size": 5}, {"clues": (8, 7)}, {"clues": (0, 17)}):
        with pytest.raises(UserError, match=r"must"):
            sudoku.generate(1, seed=0, **arguments)


@pytest.mark.parametrize("size", [3, 5, 15])
def test_mazes_have_one_way(size):
    walls, ways = mazes.generate(8, size=size, seed=2)
    assert walls[:, [0, -1]].all() and walls[:, :, [0, -1]].all()
    for maze, way in zip(walls, ways, strict=True):
        free, halls = ~maze, ~maze
        edges = (halls[1:] & halls[:-1]).sum() + (halls[:, 1:] & halls[:, :-1]).sum()
        assert edges == free.sum() - 1, "a tree: as many connections as places, less one"
        assert way[1, 1] and way[-2, -2] and not (way & maze).any()
        joins = (way[1:] & way[:-1]).sum() + (way[:, 1:] & way[:, :-1]).sum()
        assert joins == way.sum() - 1
        near = sum(np.roll(way, shift, axis) for shift in (-1, 1) for axis in (0, 1))
        assert ((near[way] == 1).sum(), (near[way] > 2).sum()) == ((2, 0) if size > 3 else (0, 0))
    assert np.array_equal(mazes.generate(8, size=size, seed=2)[0], walls)


def test_mazes_without_a_way_and_of_wrong_sizes():
    walls = np.ones((5, 5), bool)
    walls[1, 1] = walls[3, 3] = False
    assert not mazes.shortest(walls).any()
    for size in (1, 4):
        with pytest.raises(UserError, match=r"odd number from 3 on"):
            mazes.generate(1, size=size, seed=0)


def test_distortion():
    """None at all keeps the image; a shift by one pixel moves it; pixels from outside are 0."""
    images = np.random.default_rng(6).integers(0, 17, (5, 8, 6))
    assert np.array_equal(distort(images, np.random.default_rng(0), shift=0, rotation=0, stretch=0), images)

    class Fixed:
        def uniform(self, low, high, size):
            return np.full(size, high)

    moved = distort(images, Fixed(), shift=1, rotation=0, stretch=0)
    assert np.array_equal(moved[:, :-1, :-1], images[:, 1:, 1:]) and not moved[:, -1].any() and not moved[:, :, -1].any()
    square = images[:, :6]
    turned = distort(square, Fixed(), shift=0, rotation=np.pi / 2, stretch=0)
    assert np.array_equal(turned, np.rot90(square, axes=(1, 2))) or np.array_equal(turned, np.rot90(square, 3, axes=(1, 2)))
    some = distort(images, np.random.default_rng(1), shift=1, rotation=0.2, stretch=0.1)
    assert some.min() >= 0 and some.max() <= 16 and (some != images).mean() > 0.5
