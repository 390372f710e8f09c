"""Python functions -> LLVM text that does the same, by the interpreter's own C functions.

What can be translated is a part of Python: assignments, if, for, while, return, raise of an exception that is called,
try with one except clause that names what it catches and gives it no name, or with a finally, expressions without lambdas,
generators or formatted strings. Every variable has a place on the stack and holds a reference;
every call that fails goes to one place where all that is held is let go (LLVM makes registers of it). Global names are constants:
they are what they were when the function was translated. The words used here are explained in `flame.native.units`.
"""

from __future__ import annotations

import ast

from flame.native import layout
from flame.native.expressions import Expressions
from flame.native.units import Module, Value
from flame.native.wrappers import wrapper

_IN_PLACE = {ast.Add: "PyNumber_InPlaceAdd", ast.Sub: "PyNumber_InPlaceSubtract"}


def translated(m: Module) -> str:
    """The functions of all units, and their builtins."""
    bodies = [Body(m, u).text() for u in m.units.values()]
    wrappers = [wrapper(m, u) for u in m.units.values() if not u.shared]
    cells = [f"@{c} = internal global [3 x i64] zeroinitializer" for c in m.cells]
    return "\n".join([*cells, *bodies, *wrappers]) + "\n"


class Body(Expressions):
    """One function under translation."""

    def text(self) -> str:
        given = []
        for i, name in enumerate(self.parameters):
            given.append(f"ptr %a{i}")
            hint = self._parameter_hint(name)
            self.variables[name] = hint
            p = f"%local.{name}"
            if name in self.assigned:
                self.places.append(p)
                self.take(f"%a{i}")
            else:
                self.arrays.append(f"  {p} = alloca ptr")
            self.emit(f"store ptr %a{i}, ptr {p}")
        if self.rest:
            given += ["ptr %rest", "i64 %rest.count", "ptr %rest.names"]
        for s in self.tree.body:
            self.run(s)
        self.leave(self.constant(None))
        top = [f"define internal ptr @{self.unit.symbol}({', '.join(given)}) {{", "entry:"]
        top.append("  %result = alloca ptr")
        top += self.arrays
        top += [f"  {p} = alloca ptr" for p in self.places]
        top += [f"  store ptr null, ptr {p}" for p in [*self.places, "%result"]]
        self.jump("fail")
        self.begin("fail")
        for p in self.places:
            self.emit(f"call void @flame_drop(ptr {self.do(f'load ptr, ptr {p}')})")
        if self.guarded:
            self.emit(f"call void @flame_drop(ptr {self.do('load ptr, ptr %result')})")
        self.emit("ret ptr null")
        self.begin("end")
        self.release(self.places)
        got = self.do("load ptr, ptr %result")
        self.emit(f"ret ptr {got}")
        return "\n".join([*top, *self.lines, "}"])

    def leave(self, v: Value) -> None:
        """Return a value; what the statement holds is let go at the end."""
        self.take(v.register)
        self.emit(f"store ptr {v.register}, ptr %result")
        self.release(self.open)
        endings, self.endings = self.endings, []
        failing = self.failing
        for body, outside in reversed(endings):
            self.failing = outside
            for s in body:
                self.run(s)
        self.endings, self.failing = endings, failing
        self.jump("end")
        self.begin(self.label("after"))

    # ---- statements

    def run(self, s: ast.stmt) -> None:
        match s:
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                pass
            case ast.Expr():
                with self.statement():
                    self.value(s.value)
            case ast.Return():
                with self.statement():
                    self.leave(self.constant(None) if s.value is None else self.value(s.value, loose=True))
            case ast.Assign(targets=[ast.Name(id=name)]):
                with self.statement():
                    self.set_variable(name, self.value(s.value, loose=True))
            case ast.Assign():
                with self.statement():
                    self.assign_all(s.targets, s.value)
            case ast.AnnAssign(target=ast.Name(id=name), value=None):
                self.declared[name] = self.named(ast.unparse(s.annotation))
            case ast.AnnAssign() if s.value is not None:
                with self.statement():
                    hint = self.named(ast.unparse(s.annotation))
                    v = self.value(s.value, loose=isinstance(s.target, ast.Name))
                    self.assign(s.target, Value(v.register, hint or v.hint))
            case ast.AugAssign():
                with self.statement():
                    self.augment(s)
            case ast.If():
                self.run_if(s)
            case ast.For():
                self.run_for(s)
            case ast.While():
                self.run_while(s)
            case ast.Try(handlers=[], orelse=[]):
                self.run_guarded(s.body, s.finalbody, s.finalbody)
            case ast.Try(
                handlers=[ast.ExceptHandler(type=ast.Name(id="BaseException"), name=None)], orelse=[], finalbody=[]
            ) if _raises_again(s):
                self.run_guarded(s.body, s.handlers[0].body[:-1], [])
            case ast.Try(handlers=[_], orelse=[], finalbody=[_, *_]):
                inner = ast.copy_location(ast.Try(s.body, s.handlers, [], []), s)
                self.run_guarded([inner], s.finalbody, s.finalbody)
            case ast.Try(handlers=[ast.ExceptHandler(type=ast.Name() as caught, name=None)], orelse=[], finalbody=[]):
                self.run_try(s, caught)
            case ast.Break():
                self.jump(self.loops[-1][1])
                self.begin(self.label("after"))
            case ast.Continue():
                self.jump(self.loops[-1][0])
                self.begin(self.label("after"))
            case ast.Raise(exc=ast.Call() as made):
                with self.statement():
                    x = self.value(made)
                    kind = self.do(f"getelementptr i8, ptr {x.register}, i64 {layout.TYPE}")
                    cls = self.do(f"load ptr, ptr {kind}")
                    self.emit(f"call void @PyErr_SetObject(ptr {cls}, ptr {x.register})")
                    self.jump(self.failing)
                    self.begin(self.label("after"))
            case ast.Delete(targets=[ast.Subscript() as item]):
                with self.statement():
                    x, k = self.value(item.value), self.index(item.slice)
                    self.check_number(self.do(f"call i32 @PyObject_DelItem(ptr {x.register}, ptr {k.register})"))
            case _:
                raise self.refuse(s)

    def run_guarded(self, body: list[ast.stmt], failed: list[ast.stmt], ending: list[ast.stmt]) -> None:
        """A body, then its `ending`; where it fails, what is to be done then instead, with the error put aside."""
        if self.loops or self.open:
            raise self.refuse(body[0], "try in a loop")
        self.guarded = True
        outside, self.failing = self.failing, self.label("failed")
        if ending:
            self.endings.append((ending, outside))
        before = set(self.sure)
        for s in body:
            self.run(s)
        if ending:
            self.endings.pop()
        handler, self.failing = self.failing, outside
        goes_on, after = _goes_on(body), set(self.sure)
        if goes_on:
            for s in ending:
                self.run(s)
        end = self.label("endtry")
        self.jump(end)
        self.begin(handler)
        self.sure = before
        self.release([p for p in self.places if p.startswith("%t")])
        kept = [self.fresh("error") for _ in range(3)]
        self.arrays += [f"  {k} = alloca ptr" for k in kept]
        self.emit(f"call void @PyErr_Fetch({', '.join(f'ptr {k}' for k in kept)})")
        self.failing = again = self.label("again")
        for s in failed:
            self.run(s)
        self.failing = outside
        held = ", ".join(f"ptr {self.do(f'load ptr, ptr {k}')}" for k in kept)
        self.emit(f"call void @PyErr_Restore({held})")
        self.jump(outside)
        self.begin(again)  # (the later error has the earlier one for its context)
        self.emit(f"call void @flame_chain({', '.join(f'ptr {k}' for k in kept)})")
        self.jump(outside)
        self.begin(end)
        self.sure = after if goes_on else before

    def assign_all(self, targets: list[ast.expr], value: ast.expr) -> None:
        if len(targets) == 1 and isinstance(targets[0], ast.Tuple) and isinstance(value, ast.Tuple):
            several = [self.value(v) for v in value.elts]
            for t, v in zip(targets[0].elts, several, strict=True):
                self.assign(t, v)
            return
        v = self.value(value)
        for t in targets:
            self.assign(t, v)

    def assign(self, target: ast.expr, v: Value) -> None:
        match target:
            case ast.Name(id=name):
                self.set_variable(name, v)
            case ast.Attribute():
                self.set_attribute(target, v)
            case ast.Subscript():
                x, k = self.value(target.value), self.index(target.slice)
                done = self.do(f"call i32 @PyObject_SetItem(ptr {x.register}, ptr {k.register}, ptr {v.register})")
                self.check_number(done)
            case ast.Tuple(elts=parts):
                self.unpack(parts, v)
            case _:
                raise self.refuse(target)

    def unpack(self, targets: list[ast.expr], v: Value) -> None:
        """Of a tuple or list of so many; anything else is made a tuple first."""
        if any(isinstance(t, ast.Starred) for t in targets):
            raise self.refuse(targets[0], "a starred target")
        several = self.new(self.do(f"call ptr @PySequence_Tuple(ptr {v.register})"))
        size = self.do(f"call i64 @flame_length(ptr {several.register})")
        fits, good, bad = self.do(f"icmp eq i64 {size}, {len(targets)}"), self.label("fits"), self.label("unfit")
        self.branch(fits, good, bad)
        self.begin(bad)
        self.complain(ValueError, "not as many values to unpack as there are targets")
        self.begin(good)
        for i, t in enumerate(targets):
            p = self.do(f"getelementptr i8, ptr {several.register}, i64 {layout.TUPLE_ITEMS + 8 * i}")
            self.assign(t, Value(self.do(f"load ptr, ptr {p}")))

    def augment(self, s: ast.AugAssign) -> None:
        operation = _IN_PLACE.get(type(s.op))
        if operation is None or isinstance(s.target, ast.Subscript):
            raise self.refuse(s)
        read: ast.expr
        if isinstance(s.target, ast.Name):
            read = ast.Name(s.target.id, ast.Load())
        else:
            read = ast.Attribute(s.target.value, s.target.attr, ast.Load())
        ast.copy_location(read, s.target)
        a = self.value(read)
        b = self.value(s.value)
        self.assign(s.target, self.new(self.do(f"call ptr @{operation}(ptr {a.register}, ptr {b.register})")))

    def run_if(self, s: ast.If) -> None:
        yes, no, end = self.label("then"), self.label("else"), self.label("endif")
        self.test(s.test, yes, no)
        before = set(self.sure)
        self.begin(yes)
        for x in s.body:
            self.run(x)
        after = set(self.sure) if _goes_on(s.body) else None
        self.jump(end)
        self.begin(no)
        self.sure = before
        for x in s.orelse:
            self.run(x)
        self.jump(end)
        self.begin(end)
        if not s.orelse or _goes_on(s.orelse):
            self.sure = self.sure if after is None else self.sure & after
        elif after is not None:
            self.sure = after

    def run_try(self, s: ast.Try, kinds: ast.Name) -> None:
        """What the body holds when it fails is in the places that are spare after it; elsewhere there is nothing then."""
        caught, handle, end = self.label("caught"), self.label("handle"), self.label("tried")
        before, self.failing = self.failing, caught
        known = set(self.sure)
        for x in s.body:
            self.run(x)
        self.failing = before
        after = set(self.sure) if _goes_on(s.body) else None
        self.jump(end)
        self.begin(caught)
        self.release(self.spare)
        expected = self.constant(self.look_up(kinds.id))
        matches = self.do(f"call i32 @PyErr_ExceptionMatches(ptr {expected.register})")
        self.branch(self.do(f"icmp ne i32 {matches}, 0"), handle, before)
        self.begin(handle)
        self.emit("call void @PyErr_Clear()")
        self.sure = known
        for x in s.handlers[0].body:
            self.run(x)
        self.jump(end)
        self.begin(end)
        if _goes_on(s.handlers[0].body):
            self.sure = self.sure if after is None else self.sure & after
        elif after is not None:
            self.sure = after

    def test(self, node: ast.expr, yes: str, no: str) -> None:
        """Go to one of two places, with nothing of the test held."""
        with self.statement():
            c = self.condition(node)
        self.branch(c, yes, no)

    def run_while(self, s: ast.While) -> None:
        head, body, after, end = (self.label(w) for w in ("while", "body", "after", "endwhile"))
        self.jump(head)
        self.begin(head)
        self.test(s.test, body, after)
        self.begin(body)
        before = set(self.sure)
        self.loops.append((head, end))
        for x in s.body:
            self.run(x)
        self.loops.pop()
        self.sure = before
        self.jump(head)
        self.begin(after)
        for x in s.orelse:
            self.run(x)
        self.sure = set(before)
        self.jump(end)
        self.begin(end)

    def run_for(self, s: ast.For) -> None:
        """Over a tuple or list, or several of one length side by side; of anything else a list is made first."""
        sources: list[ast.expr] = [s.iter]
        targets: list[ast.expr] = [s.target]
        strict = False
        counted = None
        if isinstance(s.iter, ast.Call) and isinstance(s.iter.func, ast.Name) and self._is_builtin(s.iter.func, zip):
            if not isinstance(s.target, ast.Tuple) or len(s.target.elts) != len(s.iter.args):
                raise self.refuse(s, "zip() into other than one target for each")
            sources, targets = s.iter.args, s.target.elts
            strict = any(k.arg == "strict" and isinstance(k.value, ast.Constant) and k.value.value for k in s.iter.keywords)
        elif isinstance(s.iter, ast.Call) and isinstance(s.iter.func, ast.Name) and self._is_builtin(s.iter.func, enumerate):
            if not isinstance(s.target, ast.Tuple) or len(s.target.elts) != 2 or len(s.iter.args) != 1:
                raise self.refuse(s)
            sources, targets, counted = s.iter.args, [s.target.elts[1]], s.target.elts[0]
        before, self.open = self.open, []
        kept: list[str] = []
        several = []
        for source in sources:
            given = self.value(source).register
            several.append(self.new(self.do(f"call ptr @PySequence_Fast(ptr {given}, ptr @flame_not_iterable)")).register)
        if strict:
            sizes = [self.do(f"call i64 @flame_length(ptr {v})") for v in several]
            for other in sizes[1:]:
                same, good, bad = self.do(f"icmp eq i64 {sizes[0]}, {other}"), self.label("alike"), self.label("unlike")
                self.branch(same, good, bad)
                self.begin(bad)
                self.complain(ValueError, "zip(): the arguments are of several lengths")
                self.begin(good)
        kept, self.open = self.open, before
        counter = self.fresh("i")
        self.arrays.append(f"  {counter} = alloca i64")
        self.emit(f"store i64 0, ptr {counter}")
        head, more, body, step, after, end = (self.label(w) for w in ("for", "more", "body", "step", "after", "endfor"))
        self.jump(head)
        self.begin(head)
        i = self.do(f"load i64, ptr {counter}")
        for v in several:
            size = self.do(f"call i64 @flame_size(ptr {v})")
            inside = self.do(f"icmp slt i64 {i}, {size}")
            go = self.label("more")
            self.branch(inside, go, after)
            self.begin(go)
        self.jump(body)
        self.begin(body)
        before_body = set(self.sure)
        with self.statement():
            if counted is not None:
                self.assign(counted, self.new(self.do(f"call ptr @PyLong_FromSsize_t(i64 {i})")))
            for t, v in zip(targets, several, strict=True):
                item = self.do(f"call ptr @flame_nth(ptr {v}, i64 {i})")
                if isinstance(t, ast.Name):
                    self.set_variable(t.id, Value(item))
                else:
                    self.take(item)
                    self.temporary(item)
                    self.assign(t, Value(item))
        self.loops.append((step, end))
        for x in s.body:
            self.run(x)
        self.loops.pop()
        self.sure = before_body
        self.jump(step)
        self.begin(step)
        last = self.do(f"load i64, ptr {counter}")
        self.emit(f"store i64 {self.do(f'add i64 {last}, 1')}, ptr {counter}")
        self.jump(head)
        self.begin(after)
        for x in s.orelse:
            self.run(x)
        self.sure = set(before_body)  # (a break may have come before the rest of the body, and never came to `else`)
        self.jump(end)
        self.begin(end)
        self.release(kept)
        self.spare += kept


def _raises_again(s: ast.Try) -> bool:
    """Whether what was caught goes on after it was dealt with."""
    caught, last = s.handlers[0], s.handlers[0].body[-1]
    everything = isinstance(caught.type, ast.Name) and caught.type.id == "BaseException" and caught.name is None
    return everything and isinstance(last, ast.Raise) and last.exc is None


def _goes_on(body: list[ast.stmt]) -> bool:
    """Whether what follows a branch may be reached through it."""
    return not (body and isinstance(body[-1], ast.Return | ast.Raise | ast.Break | ast.Continue))
