"""LLVM IR as text: one function being written, its loops, and the module around it.

    function.emit(text) -> "%t7"     one instruction with a result
    function.do(text)                one without
    function.loop(...)               a counted loop with carried values, tested before its first round
    module(functions, globals)       the text, with the declarations that the functions called for

An i64 is an `Int`: a Python int where it is known when code is made, else the name of an SSA value; `add`, `mul`, ... fold the
known ones. Lines are kept in a tree: `slot()` leaves a place at the present position into which `into(slot)` writes later, so
that what does not change in a loop is written before it. An instruction that reads no memory is written once in a block, or in
a place: copies of a body that are written side by side share addresses and masks. (LLVM finds that as well, but has to read it
all before: a sum of three masked arrays had 263 KB of text for 9 KB of code.)
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from flame.dtypes import FOREIGN, dtype

Int = int | str

#: how a dtype is held in registers; float16 is LLVM's half, bfloat16 its bits
SCALAR = {
    "bool": "i1", "uint8": "i8", "int8": "i8", "uint16": "i16", "int16": "i16", "uint32": "i32", "int32": "i32",
    "uint64": "i64", "int64": "i64", "float16": "half", "bfloat16": "i16", "float8_e4m3fn": "i8", "float8_e5m2": "i8",
    "float32": "float", "float64": "double",
}  # fmt: skip
#: the suffix of an overloaded intrinsic
SUFFIX = {"i1": "i1", "i8": "i8", "i16": "i16", "i32": "i32", "i64": "i64", "half": "f16", "float": "f32", "double": "f64"}


def element(d: dtype) -> str:
    """The register type of one element."""
    return SCALAR[d.name]


def memory_element(d: dtype) -> str:
    """The type of one element in memory: bool is a byte."""
    return "i8" if d.name == "bool" else SCALAR[d.name]


def wide(t: str, lanes: int) -> str:
    """The type of `lanes` elements of type `t`; one lane is a scalar."""
    return t if lanes == 1 else f"<{lanes} x {t}>"


def suffix(t: str, lanes: int) -> str:
    return SUFFIX[t] if lanes == 1 else f"v{lanes}{SUFFIX[t]}"


def literal(value: bool | int | float, d: dtype) -> str:
    """A scalar constant as LLVM writes it. Integers wrap into the dtype."""
    if d.name == "bool":
        return "true" if value else "false"
    if d in FOREIGN:
        (bits,) = struct.unpack("<H" if d.itemsize == 2 else "<B", d.numpy.type(value).tobytes())
        return str(bits)
    if d.kind == "f":
        if d.itemsize < 8:  # exact when widened: the text of a float or half constant is that of the double it equals
            value = float(d.numpy.type(value))
        hexadecimal = f"{struct.unpack('<Q', struct.pack('<d', float(value)))[0]:016X}"
        return f"0x{hexadecimal}" if d.itemsize > 2 else _half(d.numpy.type(value).tobytes())
    return str(int(value) & ((1 << 8 * d.itemsize) - 1))


def _half(two_bytes: bytes) -> str:
    return f"0xH{struct.unpack('<H', two_bytes)[0]:04X}"


def repeat(text: str, t: str, lanes: int) -> str:
    """A constant vector with equal lanes."""
    return text if lanes == 1 else "<" + ", ".join([f"{t} {text}"] * lanes) + ">"


def vector(values: Sequence[int | str], t: str) -> str:
    """A constant vector."""
    return "<" + ", ".join(f"{t} {v}" for v in values) + ">"


#: constant vectors of a function that the code generator may keep in registers; where there are more, instructions read them
MOST_CONSTANTS = 12


@dataclass(frozen=True, slots=True)
class Either:
    """The line that has a constant written, or read from memory."""

    written: str
    read: str


Lines = list  # of str | Either | Lines
#: instructions that do not give the same when written again
_NEVER_SHARED = ("load ", "call ", "tail call ", "phi ", "alloca ", "atomicrmw ", "cmpxchg ", "freeze ")


class Function:
    """One function being written."""

    def __init__(
        self,
        name: str,
        parameters: Sequence[tuple[str, str]],
        *,
        attributes: str = "nounwind",
        linkage: str = "",
        gives: str = "void",
    ):
        self.name = name
        self.gives = gives  #: the type of its result
        self.result = ""
        #: functions that it calls, by name: they go into the same module
        self.helpers: dict[str, Function] = {}
        signature = ", ".join(f"{t} %{n}" for t, n in parameters)
        self.head = f"define {linkage + ' ' if linkage else ''}{gives} @{name}({signature}) {attributes} {{"
        self.declarations: set[str] = set()
        self.externals: set[str] = set()
        self._constants: dict[str, str] = {}
        self._lines: Lines = ["entry:"]
        self._sink: Lines = self._lines
        self._known: dict[int, dict[str, str]] = {}  #: of a list of lines, by identity: instruction -> its name there
        self._count = 0
        self.block = "entry"

    # -- lines

    def emit(self, text: str) -> str:
        known = None
        if not text.startswith(_NEVER_SHARED):
            known = self._known.setdefault(id(self._sink), {})
            found = known.get(text)
            if found is not None:
                return found
        self._count += 1
        name = f"%t{self._count}"
        self._sink.append(f"  {name} = {text}")
        if known is not None:
            known[text] = name
        return name

    def do(self, text: str) -> None:
        self._sink.append("  " + text)

    def comment(self, text: str) -> None:
        self._sink.append("  ; " + text.replace("\n", " "))

    def slot(self) -> Lines:
        """A place here, to be written to later."""
        place: Lines = []
        self._sink.append(place)
        return place

    @contextmanager
    def into(self, place: Lines) -> Iterator[None]:
        """Write straight-line code to `place`, which must dominate its uses."""
        before, self._sink = self._sink, place
        try:
            yield
        finally:
            self._sink = before

    def text(self) -> str:
        out: list[str] = []
        reads = bool(self.constants)
        stack: list[Iterator] = [iter(self._lines)]
        while stack:
            for line in stack[-1]:
                if isinstance(line, str):
                    out.append(line)
                elif isinstance(line, Either):
                    out.append(line.read if reads else line.written)
                else:
                    stack.append(iter(line))
                    break
            else:
                stack.pop()
        return "\n".join([self.head, *out, f"  ret {self.gives} {self.result}".rstrip(), "}"])

    # -- blocks

    def _label(self, hint: str) -> str:
        self._count += 1
        return f"{hint}{self._count}"

    def start(self, label: str) -> None:
        self._sink.append(f"{label}:")
        self._known.pop(id(self._sink), None)
        self.block = label

    def loop(
        self,
        low: Int,
        high: Int,
        step: Int,
        carried: Sequence[tuple[str, str]],
        body: Callable[[str, list[str]], Sequence[str]],
    ) -> list[str]:
        """for (i = low; i < high; i += step) carried = body(i, carried). `carried` are (type, first value); gives the last."""
        head, inside, after = self._label("head"), self._label("body"), self._label("after")
        before = self.block
        self.do(f"br label %{head}")
        self.start(head)
        phis = self.slot()
        self._count += 1
        i = f"%i{self._count}"
        names = []
        for _ in carried:
            self._count += 1
            names.append(f"%c{self._count}")
        more = self.emit(f"icmp slt i64 {i}, {high}")
        self.do(f"br i1 {more}, label %{inside}, label %{after}")
        self.start(inside)
        new = body(i, list(names))
        following = self.emit(f"add nsw i64 {i}, {step}")
        end = self.block
        self.do(f"br label %{head}")
        phis.append(f"  {i} = phi i64 [{low}, %{before}], [{following}, %{end}]")
        for name, (t, first), value in zip(names, carried, new, strict=True):
            phis.append(f"  {name} = phi {t} [{first}, %{before}], [{value}, %{end}]")
        self.start(after)
        return names

    def when(self, condition: str, body: Callable[[], None]) -> None:
        """if (condition) body()"""
        yes, after = self._label("then"), self._label("after")
        self.do(f"br i1 {condition}, label %{yes}, label %{after}")
        self.start(yes)
        body()
        self.do(f"br label %{after}")
        self.start(after)

    def choose(self, condition: str, yes: Callable[[], None], no: Callable[[], None]) -> None:
        """if (condition) yes() else no()"""
        first, second, after = self._label("then"), self._label("else"), self._label("after")
        self.do(f"br i1 {condition}, label %{first}, label %{second}")
        self.start(first)
        yes()
        self.do(f"br label %{after}")
        self.start(second)
        no()
        self.do(f"br label %{after}")
        self.start(after)

    # -- integers

    def add(self, a: Int, b: Int) -> Int:
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if a == 0:
            return b
        return a if b == 0 else self.emit(f"add nsw i64 {a}, {b}")

    def sub(self, a: Int, b: Int) -> Int:
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if b == 0 else self.emit(f"sub nsw i64 {a}, {b}")

    def mul(self, a: Int, b: Int) -> Int:
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        if a == 0 or b == 0:
            return 0
        if a == 1:
            return b
        return a if b == 1 else self.emit(f"mul nsw i64 {a}, {b}")

    def div(self, a: Int, b: Int) -> Int:
        """a // b for a >= 0, b > 0."""
        if isinstance(a, int) and isinstance(b, int):
            return a // b
        return a if b == 1 else self.emit(f"udiv i64 {a}, {b}")

    def rem(self, a: Int, b: Int) -> Int:
        """a % b for a >= 0, b > 0."""
        if isinstance(a, int) and isinstance(b, int):
            return a % b
        return 0 if b == 1 else self.emit(f"urem i64 {a}, {b}")

    def least(self, a: Int, b: Int) -> Int:
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return self.call("i64", "llvm.smin.i64", [("i64", a), ("i64", b)])

    def most(self, a: Int, b: Int) -> Int:
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        return self.call("i64", "llvm.smax.i64", [("i64", a), ("i64", b)])

    # -- memory and calls

    def address(self, base: str, index: Int, t: str) -> str:
        return base if index == 0 else self.emit(f"getelementptr {t}, ptr {base}, i64 {index}")

    def load(self, t: str, pointer: str, align: int, flags: str = "") -> str:
        return self.emit(f"load {t}, ptr {pointer}, align {align}{flags}")

    def store(self, t: str, value: str, pointer: str, align: int, flags: str = "") -> None:
        self.do(f"store {t} {value}, ptr {pointer}, align {align}{flags}")

    def scratch(self, t: str, count: int) -> str:
        """Aligned stack memory for `count` elements, made once at the function's entry."""
        self._count += 1
        name = f"%s{self._count}"
        self._lines.insert(1, f"  {name} = alloca [{count} x {t}], align 64")
        return name

    def call(self, result: str, name: str, arguments: Sequence[tuple[str, Int]], flags: str = "") -> str:
        """Call an intrinsic or a C function, declaring it."""
        types = ", ".join(t for t, _ in arguments)
        self.declarations.add(f"declare {result} @{name}({types})")
        text = f"call {flags + ' ' if flags else ''}{result} @{name}({', '.join(f'{t} {v}' for t, v in arguments)})"
        if result == "void":
            self.do(text)
            return ""
        return self.emit(text)

    def splat(self, value: str, t: str, lanes: int) -> str:
        """A vector whose lanes are all `value`."""
        if lanes == 1:
            return value
        if not value.startswith("%"):
            return repeat(value, t, lanes)
        v = wide(t, lanes)
        x = self.emit(f"insertelement {v} poison, {t} {value}, i64 0")
        return self.emit(f"shufflevector {v} {x}, {v} poison, <{lanes} x i32> zeroinitializer")

    def constant(self, value: str, t: str, lanes: int) -> str:
        """A constant vector, once in a block, in memory where the function has many of them (as `text` decides)."""
        name, v, size = f"@{t}_{value}_{lanes}", wide(t, lanes), lanes * {"float": 4, "double": 8}[t]
        known = self._known.setdefault(id(self._sink), {})
        if name not in known:
            self._count += 1
            known[name] = f"%t{self._count}"
            numbers = repeat(value, t, lanes)
            # (not `constant`: the code generator would look the numbers up, and broadcast one of them)
            align = min(size & -size, 64)  # (a block of 24 lanes has three vectors)
            self._constants[name] = f"{name} = private global {v} {numbers}, align {align}"
            written = f"  {known[name]} = bitcast {v} {numbers} to {v}"
            read = f"  {known[name]} = load {v}, ptr {name}, align {align}, !invariant.load !0"
            self._sink.append(Either(written, read))
        return known[name]

    @property
    def constants(self) -> dict[str, str]:
        """What it reads from memory, by name, as the module defines it."""
        return {**self._constants, "!0": "!0 = !{}"} if len(self._constants) > MOST_CONSTANTS else {}

    def shuffle(self, t: str, lanes: int, a: str, b: str, order: Sequence[int]) -> str:
        v = wide(t, lanes)
        return self.emit(f"shufflevector {v} {a}, {v} {b}, <{len(order)} x i32> {vector(order, 'i32')}")


def existing_lanes(f: Function, start: Int, last: Int, lanes: int) -> str:
    """A mask: start + lane < last."""
    left = f.splat(str(f.sub(last, start)), "i64", lanes)
    return f.emit(f"icmp sgt {wide('i64', lanes)} {left}, {vector(range(lanes), 'i64')}")


def transpose(f: Function, t: str, rows: list[str], lanes: int) -> list[str]:
    """`lanes` vectors -> the vectors of their columns, by log2(lanes) rounds of block exchanges."""
    x = list(rows)
    d = lanes // 2
    while d:
        y = [""] * lanes
        for i in range(lanes):
            if i & d:
                continue
            low = [j if not j & d else lanes + j - d for j in range(lanes)]
            high = [j + d if not j & d else lanes + j for j in range(lanes)]
            y[i] = f.shuffle(t, lanes, x[i], x[i + d], low)
            y[i + d] = f.shuffle(t, lanes, x[i], x[i + d], high)
        x, d = y, d // 2
    return x


def store_tile(f: Function, values: list[str], rows: int, t: str, lanes: int) -> None:
    """Put a tile's vectors, row by row, at `%to`, rows `%to_row` elements apart; where `%goes_on` is not 0 they are added."""
    v, align = wide(t, lanes), {"float": 4, "double": 8}[t]
    places = []
    for r in range(rows):
        line = f.address("%to", f.mul("%to_row", r), t)
        places += [f.address(line, j * lanes, t) for j in range(len(values) // rows)]

    def store(values: list[str]) -> None:
        for x, place in zip(values, places, strict=True):
            f.store(v, x, place, align)

    def add() -> None:
        store([f.emit(f"fadd {v} {x}, {f.load(v, p, align)}") for x, p in zip(values, places, strict=True)])

    f.choose(f.emit("icmp ne i64 %goes_on, 0"), add, lambda: store(values))


def module(functions: Sequence[Function], constants: Sequence[str] = ()) -> str:
    """The module of these functions. Equal functions give equal text."""
    helpers = {n: h for f in functions for n, h in f.helpers.items()}
    every = [*helpers.values(), *functions]
    declarations = sorted(set().union(*(f.declarations for f in every)))
    read = {n: c for f in every for n, c in f.constants.items()}
    return "\n".join([*declarations, *constants, *read.values(), *(f.text() for f in every)]) + "\n"
