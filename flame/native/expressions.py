"""Expressions and conditions, as LLVM text."""

from __future__ import annotations

import ast
import types
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from flame.native import layout
from flame.native.units import Unit, Value, defaults, parameters
from flame.native.writer import Writer

_COMPARE = {ast.Lt: 0, ast.LtE: 1, ast.Eq: 2, ast.NotEq: 3, ast.Gt: 4, ast.GtE: 5}
_INTEGER = {ast.Lt: "slt", ast.LtE: "sle", ast.Eq: "eq", ast.NotEq: "ne", ast.Gt: "sgt", ast.GtE: "sge"}
_ARITHMETIC = {
    ast.Add: "PyNumber_Add", ast.Sub: "PyNumber_Subtract", ast.Mult: "PyNumber_Multiply",
    ast.FloorDiv: "PyNumber_FloorDivide", ast.Mod: "PyNumber_Remainder",
}  # fmt: skip
_OFFSET_FLAG = -(1 << 63)


class Expressions(Writer):
    """What has a value."""

    # ---- conditions

    def condition(self, node: ast.expr) -> str:
        """An i1."""
        match node:
            case ast.UnaryOp(op=ast.Not(), operand=x):
                return self.do(f"xor i1 {self.condition(x)}, true")
            case ast.BoolOp(op=op, values=parts):
                cell, end = self.fresh("c"), self.label("told")
                self.arrays.append(f"  {cell} = alloca i1")
                for i, x in enumerate(parts):
                    c = self.condition(x)
                    self.emit(f"store i1 {c}, ptr {cell}")
                    if i < len(parts) - 1:
                        go = self.label("and" if isinstance(op, ast.And) else "or")
                        self.branch(c, *((go, end) if isinstance(op, ast.And) else (end, go)))
                        self.begin(go)
                self.jump(end)
                self.begin(end)
                return self.do(f"load i1, ptr {cell}")
            case ast.Compare(left=a, ops=[op], comparators=[b]):
                return self.compare(node, a, op, b)
            case ast.Call(func=ast.Name() as f, args=[x, cls]) if self._is_builtin(f, isinstance):
                v, kind = self.value(x), self.value(cls)
                got = self.do(f"call i32 @flame_isinstance(ptr {v.register}, ptr {kind.register})")
                self.check_number(got)
                return self.do(f"icmp ne i32 {got}, 0")
            case ast.Name(id=name) if self.rest and name == self.rest[1]:
                return self.do("icmp ne ptr %rest.names, null")
            case ast.Constant(value=bool(known)):
                return self.do(f"icmp eq i1 {int(known)}, 1")
            case _:
                v = self.value(node, loose=True)
                got = self.do(f"call i32 {self.piece('flame_truth')}(ptr {v.register})")
                self.check_number(got)
                return self.do(f"icmp ne i32 {got}, 0")

    def compare(self, node: ast.expr, left: ast.expr, op: ast.cmpop, right: ast.expr) -> str:
        match op:
            case ast.Is() | ast.IsNot():
                simple = _is_load(right)
                a = self.value(left, loose=simple)
                b = self.value(right, loose=True)
                return self.do(f"icmp {'eq' if isinstance(op, ast.Is) else 'ne'} ptr {a.register}, {b.register}")
            case ast.In() | ast.NotIn():
                a, b = self.value(left), self.value(right)
                got = self.do(f"call i32 @PySequence_Contains(ptr {b.register}, ptr {a.register})")
                self.check_number(got)
                return self.do(f"icmp {'ne' if isinstance(op, ast.In) else 'eq'} i32 {got}, 0")
        if self.is_count(left) and self.is_count(right):
            x, y = self.count(left), self.count(right)
            return self.do(f"icmp {_INTEGER[type(op)]} i64 {x}, {y}")
        a, b = self.value(left), self.value(right)
        got = self.do(f"call i32 @flame_equal(ptr {a.register}, ptr {b.register}, i32 {_COMPARE[type(op)]})")
        self.check_number(got)
        return self.do(f"icmp ne i32 {got}, 0")

    def is_count(self, node: ast.expr) -> bool:
        match node:
            case ast.Constant(value=v):
                return type(v) is int
            case ast.Call(func=ast.Name() as f, args=[_]):
                return self._is_builtin(f, len)
        return False

    def count(self, node: ast.expr) -> str:
        """An i64."""
        match node:
            case ast.Constant(value=v):
                return str(v)
            case ast.Call(args=[ast.Name(id=name)]) if self.rest and name == self.rest[0]:
                return "%rest.count"
            case ast.Call(args=[x]):
                got = self.do(f"call i64 @flame_length(ptr {self.value(x, loose=True).register})")
                self.check_number(got, "i64")
                return got
        raise self.refuse(node)

    # ---- expressions

    def value(self, node: ast.expr, loose: bool = False) -> Value:
        """What an expression gives. With `loose`, it may be good only until something is called."""
        v = self._value(node)
        return v if loose else self.hold(v)

    def _value(self, node: ast.expr) -> Value:
        match node:
            case ast.Constant(value=x):
                return self.constant(x)
            case ast.Name(id=name):
                return self.variable(node, name)
            case ast.Attribute():
                return self.attribute(node)
            case ast.Subscript():
                return self.item(node)
            case ast.Call():
                return self.call(node)
            case ast.Tuple(elts=parts):
                return self.sequence(parts, tuple)
            case ast.List(elts=parts):
                return self.sequence(parts, list)
            case ast.Dict(keys=[]):
                return self.new(self.do("call ptr @PyDict_New()"))
            case ast.IfExp():
                return self.choice(node)
            case ast.ListComp(generators=[one]) if not one.is_async:
                return self.comprehension(node.elt, one)
            case ast.BoolOp():
                return self.either(node)
            case ast.Compare() | ast.UnaryOp(op=ast.Not()):
                c = self.condition(node)
                return Value(self.do(f"select i1 {c}, ptr {self.m.constant(True)}, ptr {self.m.constant(False)}"))
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(x) | float(x))):
                return self.constant(-x)
            case ast.BinOp(op=op) if type(op) in _ARITHMETIC:
                a, b = self.value(node.left), self.value(node.right)
                return self.new(self.do(f"call ptr @{_ARITHMETIC[type(op)]}(ptr {a.register}, ptr {b.register})"))
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):  # of classes
                a, b = self._value(left), self._value(right)
                if isinstance(a.constant, type | types.UnionType) and isinstance(b.constant, type | types.UnionType):
                    return self.constant(a.constant | b.constant)
            case ast.NamedExpr(target=target, value=x):
                v = self.value(x)
                self.set_variable(target.id, v)
                return Value(v.register, v.hint)
        raise self.refuse(node)

    def variable(self, node: ast.expr, name: str) -> Value:
        if self.rest and name in self.rest:
            made = "flame_packed(ptr %rest, i64 %rest.count)"
            if name == self.rest[1]:
                made = "flame_rest_dict(ptr %rest, i64 %rest.count, ptr %rest.names)"
            return self.new(self.do(f"call ptr @{made}"), tuple if name == self.rest[0] else None)
        if name in self.variables:
            x = self.do(f"load ptr, ptr %local.{name}")
            if name not in self.sure:
                bad, good, unset = self.do(f"icmp eq ptr {x}, null"), self.label("set"), self.label("unset")
                self.branch(bad, unset, good)
                self.begin(unset)
                self.complain(UnboundLocalError, name)
                self.begin(good)
            return Value(x, self.variables[name])
        if name in self.assigned:
            raise self.refuse(node, f"the use of {name} before its assignment")
        return self.constant(self.look_up(name))

    def attribute(self, node: ast.Attribute) -> Value:
        x = self.value(node.value, loose=True)
        if x.constant is not None:
            cell = self.m.hints.locals.get(id(x.constant))
            if cell is not None:
                return self.of_thread(x, node.attr, cell)
            if isinstance(x.constant, types.ModuleType):
                where = f"ptr {self.m.constant(vars(x.constant))}, ptr {x.register}, ptr {self.m.constant(node.attr)}"
                got = self.do(f"call ptr @flame_global({where})")
                self.check(got)
                return Value(got, loose=True)
        return self.read(x, node.attr)

    def read(self, x: Value, name: str) -> Value:
        hint = self.m.hints.attributes.get((x.hint, name)) if x.hint is not None else None
        offset = self.m.hints.slots.get(x.hint, {}).get(name) if x.hint is not None else None
        key = self.m.constant(name)
        if offset is None:
            x = self.hold(x)
            return self.new(self.do(f"call ptr @PyObject_GetAttr(ptr {x.register}, ptr {key})"), hint)
        assert x.hint is not None
        cls = self.m.constant(x.hint)
        if x.hint in self.m.hints.alike:
            cls = self.like(x.register, x.hint)
        read = "flame_read_or_none" if name in self.m.hints.empty.get(x.hint, ()) else "flame_read"
        got = self.do(f"call ptr {self.piece(read)}(ptr {x.register}, ptr {cls}, i64 {offset}, ptr {key})")
        self.check(got)
        return Value(got, hint, loose=True)

    def of_thread(self, x: Value, name: str, cell: dict[str, Any]) -> Value:
        """What a threading.local has for this thread."""
        key, otherwise = self.m.constant(name), self.m.constant(cell[name])
        got = self.do(
            f"call ptr @flame_local(ptr {cell['cell']}, ptr {x.register}, ptr {self.m.constant('__dict__')}, ptr {key})"
        )
        none = self.do(f"icmp eq ptr {got}, null")
        return Value(self.do(f"select i1 {none}, ptr {otherwise}, ptr {got}"), loose=True)

    def set_attribute(self, target: ast.Attribute, v: Value) -> None:
        x = self.value(target.value)
        cell = None if x.constant is None else self.m.hints.locals.get(id(x.constant))
        if cell is not None and target.attr in cell:
            where = f"ptr {cell['cell']}, ptr {x.register}, ptr {self.m.constant('__dict__')}"
            done = self.do(f"call i32 @flame_set_local({where}, ptr {self.m.constant(target.attr)}, ptr {v.register})")
            self.check_number(done)
            return
        offset = self.m.hints.slots.get(x.hint, {}).get(target.attr) if x.hint is not None else None
        key = self.m.constant(target.attr)
        if offset is None:
            done = self.do(f"call i32 @PyObject_SetAttr(ptr {x.register}, ptr {key}, ptr {v.register})")
        else:
            assert x.hint is not None
            cls = self.m.constant(x.hint)
            if x.hint in self.m.hints.alike:
                cls = self.like(x.register, x.hint)
            given = f"ptr {x.register}, ptr {cls}, i64 {offset}, ptr {key}, ptr {v.register}"
            done = self.do(f"call i32 {self.piece('flame_write')}({given})")
        self.check_number(done)

    def index(self, node: ast.expr) -> Value:
        if not isinstance(node, ast.Slice):
            return self.value(node)
        parts = [self.constant(None) if p is None else self.value(p) for p in (node.lower, node.upper, node.step)]
        return self.new(self.do(f"call ptr @PySlice_New({', '.join(f'ptr {p.register}' for p in parts)})"))

    def item(self, node: ast.Subscript) -> Value:
        k = node.slice
        constant = isinstance(k, ast.Constant) and type(k.value) is int
        if constant and self.rest and isinstance(node.value, ast.Name) and node.value.id == self.rest[0]:
            return self.rest_item(k.value)  # type: ignore[attr-defined]
        x = self.value(node.value, loose=constant)
        if not constant:
            i = self.index(k)
            return self.new(self.do(f"call ptr @PyObject_GetItem(ptr {x.register}, ptr {i.register})"))
        assert isinstance(k, ast.Constant) and isinstance(k.value, int)
        got = self.do(f"call ptr {self.piece('flame_item')}(ptr {x.register}, i64 {k.value}, ptr {self.m.constant(k.value)})")
        self.check(got)
        return Value(got, loose=True)

    def rest_item(self, i: int) -> Value:
        """A further argument by position."""
        there, good, bad = self.do(f"icmp ugt i64 %rest.count, {i}"), self.label("given"), self.label("missing")
        self.branch(there, good, bad)
        self.begin(bad)
        self.complain(IndexError, "tuple index out of range")
        self.begin(good)
        p = self.do(f"getelementptr ptr, ptr %rest, i64 {i}")
        return Value(self.do(f"load ptr, ptr {p}"))

    def sequence(self, parts: list[ast.expr], kind: type) -> Value:
        if any(isinstance(p, ast.Starred) for p in parts):
            whole = self.new(self.do("call ptr @PyList_New(i64 0)"))
            for p in parts:
                if isinstance(p, ast.Starred):
                    v = self.value(p.value)
                    self.new(self.do(f"call ptr @PySequence_InPlaceConcat(ptr {whole.register}, ptr {v.register})"))
                else:
                    v = self.value(p)
                    self.check_number(self.do(f"call i32 @PyList_Append(ptr {whole.register}, ptr {v.register})"))
            return whole if kind is list else self.new(self.do(f"call ptr @PyList_AsTuple(ptr {whole.register})"), tuple)
        values = [self.value(p) for p in parts]
        made = self.new(self.do(f"call ptr @{'PyTuple_New' if kind is tuple else 'PyList_New'}(i64 {len(parts)})"), kind)
        base, start = made.register, layout.TUPLE_ITEMS
        if kind is list and values:
            items = self.do(f"getelementptr i8, ptr {made.register}, i64 {layout.LIST_ITEMS}")
            base, start = self.do(f"load ptr, ptr {items}"), 0
        for i, v in enumerate(values):
            self.take(v.register)
            place = self.do(f"getelementptr i8, ptr {base}, i64 {start + 8 * i}")
            self.emit(f"store ptr {v.register}, ptr {place}")
        return made

    def _kept(self, v: Value, held: str) -> None:
        """Hold a value of one of several ways."""
        self.take(v.register)
        self.emit(f"store ptr {v.register}, ptr {held}")

    def comprehension(self, item: ast.expr, part: ast.comprehension) -> Value:
        """A list, made by a loop whose variables are its own."""
        self.n += 1
        own = {n.id: f"{n.id}.{self.n}" for n in ast.walk(part.target) if isinstance(n, ast.Name)}
        rename = _Rename(own)
        made = f"list.{self.n}"
        whole = self.new(self.do("call ptr @PyList_New(i64 0)"), list)
        self.set_variable(made, whole)
        append = ast.Call(ast.Attribute(ast.Name(made, ast.Load()), "append", ast.Load()), [rename.visit(item)], [])
        body: list[ast.stmt] = [ast.Expr(append)]
        for test in reversed(part.ifs):
            body = [ast.If(rename.visit(test), body, [])]
        self.run_for(ast.For(rename.visit(part.target), part.iter, body, []))
        self.release([f"%local.{name}" for name in (made, *own.values())])
        return whole

    def choice(self, node: ast.IfExp) -> Value:
        yes, no, end = self.label("yes"), self.label("no"), self.label("chosen")
        held = self.place()
        self.branch(self.condition(node.test), yes, no)
        hints = []
        for label, x in ((yes, node.body), (no, node.orelse)):
            self.begin(label)
            v = self.value(x, loose=True)
            hints.append(v.hint)
            self._kept(v, held)
            self.jump(end)
        self.begin(end)
        return Value(self.do(f"load ptr, ptr {held}"), hints[0] or hints[1])

    def either(self, node: ast.BoolOp) -> Value:
        end = self.label("chosen")
        held = self.place()
        for i, x in enumerate(node.values):
            v = self.value(x)
            self.release([held])
            self._kept(v, held)
            if i < len(node.values) - 1:
                got = self.do(f"call i32 {self.piece('flame_truth')}(ptr {v.register})")
                self.check_number(got)
                true, go = self.do(f"icmp ne i32 {got}, 0"), self.label("go")
                self.branch(true, *((go, end) if isinstance(node.op, ast.And) else (end, go)))
                self.begin(go)
        self.jump(end)
        self.begin(end)
        return Value(self.do(f"load ptr, ptr {held}"), v.hint)

    # ---- calls

    def call(self, node: ast.Call) -> Value:
        f = node.func
        if isinstance(f, ast.Name) and f.id not in self.variables:
            known = self.known_call(node, self.look_up(f.id))
            if known is not None:
                return known
        if isinstance(f, ast.Attribute):
            return self.method(node, f)
        callee = self.value(f)
        if callee.hint is weakref.ref and not node.args and not node.keywords:
            return self.new(self.do(f"call ptr @flame_referent(ptr {callee.register})"))
        unit = self._method_unit(callee.hint, "__call__")
        if unit is not None and not node.keywords and _fits(unit, len(node.args) + 1):
            return self.call_like(node, callee, unit)
        return self.vectorcall(node, callee)

    def call_like(self, node: ast.Call, x: Value, unit: Unit) -> Value:
        """A call of what most likely has a native `__call__`."""
        assert x.hint is not None
        given = [self.value(a) for a in node.args]
        quick, slow, end = self.label("direct"), self.label("any"), self.label("called")
        result = self.place()
        self.branch(self.is_exactly(x.register, x.hint), quick, slow)
        self.begin(quick)
        passed = ", ".join(f"ptr {a.register}" for a in (x, *self.completed(unit, given)))
        self.emit(f"store ptr {self.do(f'call ptr @{unit.symbol}({passed})')}, ptr {result}")
        self.jump(end)
        self.begin(slow)
        n = len(given) + _OFFSET_FLAG
        called = self.do(f"call ptr @PyObject_Vectorcall(ptr {x.register}, ptr {self.array(given)}, i64 {n}, ptr null)")
        self.emit(f"store ptr {called}, ptr {result}")
        self.jump(end)
        self.begin(end)
        got = self.do(f"load ptr, ptr {result}")
        self.check(got)
        return Value(got)

    def known_call(self, node: ast.Call, f: Any) -> Value | None:
        """A call of a constant that is done in place."""
        args = node.args
        if node.keywords or any(isinstance(a, ast.Starred) for a in args):
            return None
        if f is len and len(args) == 1:
            return self.new(self.do(f"call ptr @PyLong_FromSsize_t(i64 {self.count(node)})"))
        if f is type and len(args) == 1:
            p = self.do(f"getelementptr i8, ptr {self.value(args[0], loose=True).register}, i64 {layout.TYPE}")
            return Value(self.do(f"load ptr, ptr {p}"), loose=True)
        if f is isinstance and len(args) == 2:
            c = self.condition(node)
            return Value(self.do(f"select i1 {c}, ptr {self.m.constant(True)}, ptr {self.m.constant(False)}"))
        if f is weakref.ref and len(args) == 1:
            return self.new(self.do(f"call ptr @PyWeakref_NewRef(ptr {self.value(args[0]).register}, ptr null)"))
        if f is object.__new__ and len(args) == 1:
            cls = self.value(args[0])
            if isinstance(cls.constant, type):
                return self.new(self.do(f"call ptr @PyType_GenericAlloc(ptr {cls.register}, i64 0)"), cls.constant)
        unit = self.m.by_function.get(id(f))
        if unit is not None and _fits(unit, len(args)):
            return self.direct(unit, self.completed(unit, [self.value(a) for a in args]))
        if isinstance(f, type) and f in self.m.hints.slots and f.__new__ is object.__new__:
            return self.construct(node, f)
        return None

    def construct(self, node: ast.Call, cls: type) -> Value | None:
        """An instance of a class of slots whose `__init__` is native."""
        unit = self.m.by_method.get((cls, "__init__"))
        if unit is None or not _fits(unit, len(node.args) + 1):
            return None
        args = self.completed(unit, [self.value(a) for a in node.args])
        made = self.new(self.do(f"call ptr @PyType_GenericAlloc(ptr {self.m.constant(cls)}, i64 0)"), cls)
        self.direct(unit, [made, *args])
        return made

    def completed(self, unit: Unit, args: list[Value]) -> list[Value]:
        """The arguments with the defaults of those that were not given."""
        more = defaults(unit.function)
        missing = len(parameters(unit.function)) - len(args) - (unit.owner is not None)
        return args + [self.constant(x) for x in more[len(more) - missing :]] if missing else args

    def direct(self, unit: Unit, args: list[Value]) -> Value:
        given = ", ".join(f"ptr {a.register}" for a in args)
        return self.new(self.do(f"call ptr @{unit.symbol}({given})"))

    def method(self, node: ast.Call, f: ast.Attribute) -> Value:
        plain = not node.keywords and not any(isinstance(a, ast.Starred) for a in node.args)
        x = self.value(f.value)
        if x.constant is not None and isinstance(x.constant, types.ModuleType | type):
            callee = getattr(x.constant, f.attr)
            known = self.known_call(node, callee)
            return known if known is not None else self.vectorcall(node, self.constant(callee))
        if plain and x.hint is list and f.attr == "append" and len(node.args) == 1:
            return self.append(node, x)
        unit = self._method_unit(x.hint, f.attr) if plain else None
        if unit is None or not _fits(unit, len(node.args) + 1):
            offset = self.m.hints.slots.get(x.hint, {}).get(f.attr) if x.hint is not None else None
            if self.passes_on(node) and offset is None:
                what = f"ptr {self.m.constant(f.attr)}, ptr {x.register}, ptr %rest, i64 %rest.count, ptr %rest.names"
                return self.new(self.do(f"call ptr @flame_pass_on({what})"))
            if offset is not None:
                return self.vectorcall(node, self.hold(self.read(x, f.attr)))
            if plain:
                return self.call_method(x, f.attr, [self.value(a) for a in node.args])
            callee = self.new(self.do(f"call ptr @PyObject_GetAttr(ptr {x.register}, ptr {self.m.constant(f.attr)})"))
            return self.vectorcall(node, callee)
        given = [self.value(a) for a in node.args]
        args = self.completed(unit, given)
        quick, slow, end = self.label("direct"), self.label("any"), self.label("called")
        result = self.place()
        assert x.hint is not None
        self.branch(self.is_exactly(x.register, x.hint), quick, slow)
        self.begin(quick)
        passed = ", ".join(f"ptr {a.register}" for a in (x, *args))
        self.emit(f"store ptr {self.do(f'call ptr @{unit.symbol}({passed})')}, ptr {result}")
        self.jump(end)
        self.begin(slow)
        self.emit(f"store ptr {self._call_method(x, f.attr, given)}, ptr {result}")
        self.jump(end)
        self.begin(end)
        got = self.do(f"load ptr, ptr {result}")
        self.check(got)
        return Value(got)

    def _method_unit(self, cls: type | None, name: str) -> Unit | None:
        """The native method that this class has by that name."""
        if (cls, name) in self.m.hints.own:
            return None
        for c in cls.__mro__ if cls is not None else ():
            if name in vars(c):
                return self.m.by_method.get((c, name))
        return None

    def append(self, node: ast.Call, x: Value) -> Value:
        v = self.value(node.args[0])
        quick, slow, end = self.label("list"), self.label("any"), self.label("appended")
        self.branch(self.is_exactly(x.register, list), quick, slow)
        self.begin(quick)
        self.check_number(self.do(f"call i32 @flame_append(ptr {x.register}, ptr {v.register})"))
        self.jump(end)
        self.begin(slow)
        self.call_method(x, "append", [v])
        self.jump(end)
        self.begin(end)
        return self.constant(None)

    def array(self, values: Sequence[Value]) -> str:
        """Arguments side by side, with a spare place before them that the callee may use."""
        a = self.fresh("args")
        self.arrays.append(f"  {a} = alloca [{len(values) + 1} x ptr]")
        for i, v in enumerate(values, 1):
            p = self.do(f"getelementptr ptr, ptr {a}, i64 {i}")
            self.emit(f"store ptr {v.register}, ptr {p}")
        return self.do(f"getelementptr ptr, ptr {a}, i64 1")

    def _call_method(self, x: Value, name: str, args: Sequence[Value]) -> str:
        at = self.array([x, *args])
        n = len(args) + 1 + _OFFSET_FLAG
        return self.do(f"call ptr @PyObject_VectorcallMethod(ptr {self.m.constant(name)}, ptr {at}, i64 {n}, ptr null)")

    def call_method(self, x: Value, name: str, args: Sequence[Value]) -> Value:
        return self.new(self._call_method(x, name, args))

    def passes_on(self, node: ast.Call) -> bool:
        """Whether a call is given the further arguments as they are, and nothing else."""
        match node:
            case ast.Call(
                args=[ast.Starred(value=ast.Name(id=several))], keywords=[ast.keyword(arg=None, value=ast.Name(id=named))]
            ):
                return self.rest == (several, named)
        return False

    def vectorcall(self, node: ast.Call, f: Value) -> Value:
        if self.passes_on(node):
            what = f"ptr {f.register}, ptr %rest, i64 %rest.count, ptr %rest.names"
            return self.new(self.do(f"call ptr @PyObject_Vectorcall({what})"))
        match node:
            case ast.Call(args=[ast.Starred(value=given)], keywords=[ast.keyword(arg=None, value=named)]):
                a, k = self.value(given), self.value(named)
                a = self.new(self.do(f"call ptr @PySequence_Tuple(ptr {a.register})"))
                return self.new(self.do(f"call ptr @PyObject_Call(ptr {f.register}, ptr {a.register}, ptr {k.register})"))
            case ast.Call(args=[ast.Starred(value=given)], keywords=[]):
                a = self.value(given)
                a = self.new(self.do(f"call ptr @PySequence_Tuple(ptr {a.register})"))
                return self.new(self.do(f"call ptr @PyObject_Call(ptr {f.register}, ptr {a.register}, ptr null)"))
        if len(node.keywords) == 1 and node.keywords[0].arg is None:
            a, k = self.sequence(node.args, tuple), self.value(node.keywords[0].value)
            return self.new(self.do(f"call ptr @PyObject_Call(ptr {f.register}, ptr {a.register}, ptr {k.register})"))
        if any(k.arg is None for k in node.keywords):
            raise self.refuse(node, "a call with some starred arguments")
        if any(isinstance(a, ast.Starred) for a in node.args):
            if node.keywords:
                raise self.refuse(node, "a call with starred and named arguments")
            a = self.sequence(node.args, tuple)
            return self.new(self.do(f"call ptr @PyObject_Call(ptr {f.register}, ptr {a.register}, ptr null)"))
        values = [self.value(a) for a in node.args] + [self.value(k.value) for k in node.keywords]
        names = self.m.constant(tuple(k.arg for k in node.keywords)) if node.keywords else "null"
        at = self.array(values)
        n = len(node.args) + _OFFSET_FLAG
        return self.new(self.do(f"call ptr @PyObject_Vectorcall(ptr {f.register}, ptr {at}, i64 {n}, ptr {names})"))


class _Rename(ast.NodeTransformer):
    """The variables of a comprehension, by other names."""

    def __init__(self, names: Mapping[str, str]):
        self.names = names

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(self.names.get(node.id, node.id), node.ctx)


def _fits(unit: Unit, given: int) -> bool:
    """Whether a native function can be called with so many arguments, its receiver among them."""
    n = len(parameters(unit.function))
    return n - len(defaults(unit.function)) <= given <= n


def _is_load(node: ast.expr) -> bool:
    """Whether an expression calls nothing of the user's: names, constants, slots of names."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name | ast.Constant)
