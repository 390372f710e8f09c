"""LLVM functions that translated code calls: what Python's operations do, quickly where an object is of the commonest kind.

    flame_incref(x)            holds x
    flame_decref(x)            lets go of x, or of nothing
    flame_truth(x)             1, 0, or -1 with an error set
    flame_equal(a, b, op)      a == b (op 2) and the other comparisons, as 1, 0 or -1
    flame_length(x)            len(x), or -1
    flame_isinstance(x, cls)   1, 0 or -1
    flame_weakref(x)           weakref.ref(x)
    flame_append(list, x)      0, or -1
    flame_packed(args, count)  a tuple of arguments that lie side by side
    flame_size(x)              len(x) of a tuple or list
    flame_nth(x, i)            its item i, which is there
    flame_local(cell, obj, name)
                               obj.name of a threading.local, borrowed; null where only its class has it
    flame_set_local(cell, obj, name, x)
                               obj.name = x
    flame_global(dict, module, name)
                               module.name, borrowed

Those of `PLACED` are there once more by a name that ends in `_here`, to be written out where they are called. Those that pass
arguments on, and errors, are in `flame.native.passing`.

`$NAME` stands for what `flame.native.layout` found out of this interpreter. Counts of references are changed in place where they
lie as `layout` expects, and objects that are never freed are left alone; else by the interpreter's own functions, which take a
third of the time of what is followed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Final

from flame.native import passing

#: functions of the interpreter: name -> LLVM signature
INTERPRETER: Final = {
    "Py_IncRef": "void (ptr)",
    "Py_DecRef": "void (ptr)",
    "_Py_Dealloc": "void (ptr)",
    "PyObject_IsTrue": "i32 (ptr)",
    "PyObject_Size": "i64 (ptr)",
    "PyObject_GetAttr": "ptr (ptr, ptr)",
    "PyObject_SetAttr": "i32 (ptr, ptr, ptr)",
    "PyObject_GetItem": "ptr (ptr, ptr)",
    "PyObject_SetItem": "i32 (ptr, ptr, ptr)",
    "PyObject_DelItem": "i32 (ptr, ptr)",
    "PyObject_RichCompare": "ptr (ptr, ptr, i32)",
    "PyObject_RichCompareBool": "i32 (ptr, ptr, i32)",
    "PyObject_IsInstance": "i32 (ptr, ptr)",
    "PyObject_Vectorcall": "ptr (ptr, ptr, i64, ptr)",
    "PyObject_VectorcallMethod": "ptr (ptr, ptr, i64, ptr)",
    "PyObject_Call": "ptr (ptr, ptr, ptr)",
    "PyObject_GetIter": "ptr (ptr)",
    "PyIter_Next": "ptr (ptr)",
    "PySequence_Contains": "i32 (ptr, ptr)",
    "PySequence_Fast": "ptr (ptr, ptr)",
    "PySequence_InPlaceConcat": "ptr (ptr, ptr)",
    "PySequence_Tuple": "ptr (ptr)",
    "PySlice_New": "ptr (ptr, ptr, ptr)",
    "PyTuple_New": "ptr (i64)",
    "PyList_New": "ptr (i64)",
    "PyList_Append": "i32 (ptr, ptr)",
    "PyList_AsTuple": "ptr (ptr)",
    "PyLong_FromSsize_t": "ptr (i64)",
    "PyNumber_Add": "ptr (ptr, ptr)",
    "PyNumber_Subtract": "ptr (ptr, ptr)",
    "PyNumber_Multiply": "ptr (ptr, ptr)",
    "PyNumber_FloorDivide": "ptr (ptr, ptr)",
    "PyNumber_Remainder": "ptr (ptr, ptr)",
    "PyNumber_InPlaceAdd": "ptr (ptr, ptr)",
    "PyNumber_InPlaceSubtract": "ptr (ptr, ptr)",
    "PyWeakref_NewRef": "ptr (ptr, ptr)",
    **({"PyWeakref_GetRef": "i32 (ptr, ptr)"} if sys.version_info >= (3, 13) else {"PyWeakref_GetObject": "ptr (ptr)"}),
    "PyType_GenericAlloc": "ptr (ptr, i64)",
    "PyThreadState_Get": "ptr ()",
    "PyThreadState_GetID": "i64 (ptr)",
    "PyDict_GetItemWithError": "ptr (ptr, ptr)",
    "PyDict_New": "ptr ()",
    "PyDict_SetItem": "i32 (ptr, ptr, ptr)",
    "PyErr_Fetch": "void (ptr, ptr, ptr)",
    "PyErr_Restore": "void (ptr, ptr, ptr)",
    "PyErr_NormalizeException": "void (ptr, ptr, ptr)",
    "PyException_SetContext": "void (ptr, ptr)",
    "PyException_SetTraceback": "i32 (ptr, ptr)",
    "PyErr_SetObject": "void (ptr, ptr)",
    "PyErr_Occurred": "ptr ()",
    "PyErr_ExceptionMatches": "i32 (ptr)",
    "PyErr_Clear": "void ()",
}

_TEXT: Final = """
@flame_not_iterable = internal constant [37 x i8] c"what is walked over is not iterable\\00\\00"

define internal void @flame_drop(ptr %x) noinline {
  call void @flame_decref(ptr %x)
  ret void
}

define internal void @flame_set(ptr %place, ptr %x) alwaysinline {
  call void @flame_incref(ptr %x)
  %old = load ptr, ptr %place
  store ptr %x, ptr %place
  call void @flame_decref(ptr %old)
  ret void
}

define internal ptr @flame_borrowed(ptr %x) noinline {
  %wrong = icmp eq ptr %x, null
  br i1 %wrong, label %fail, label %look
look:
  %count = load i32, ptr %x
  %alone = icmp eq i32 %count, 1
  call void @Py_DecRef(ptr %x)
  br i1 %alone, label %lost, label %good
good:
  ret ptr %x
lost:
  call void @PyErr_SetObject(ptr @$TypeError, ptr @$fresh)
  ret ptr null
fail:
  ret ptr null
}

define internal ptr @flame_asked(ptr %x, ptr %name) noinline {
  call void @Py_IncRef(ptr %x)
  %got = call ptr @PyObject_GetAttr(ptr %x, ptr %name)
  call void @Py_DecRef(ptr %x)
  %held = call ptr @flame_borrowed(ptr %got)
  ret ptr %held
}

define internal ptr @flame_read(ptr %x, ptr %cls, i64 %offset, ptr %name) noinline {
  %type.p = getelementptr i8, ptr %x, i64 $type
  %type = load ptr, ptr %type.p
  %same = icmp eq ptr %type, %cls
  br i1 %same, label %slot, label %any
slot:
  %p = getelementptr i8, ptr %x, i64 %offset
  %found = load ptr, ptr %p
  %empty = icmp eq ptr %found, null
  br i1 %empty, label %any, label %good
good:
  ret ptr %found
any:
  %asked = call ptr @flame_asked(ptr %x, ptr %name)
  ret ptr %asked
}

define internal ptr @flame_read_or_none(ptr %x, ptr %cls, i64 %offset, ptr %name) noinline {
  %type.p = getelementptr i8, ptr %x, i64 $type
  %type = load ptr, ptr %type.p
  %same = icmp eq ptr %type, %cls
  br i1 %same, label %slot, label %any
slot:
  %p = getelementptr i8, ptr %x, i64 %offset
  %found = load ptr, ptr %p
  %empty = icmp eq ptr %found, null
  %there = select i1 %empty, ptr @$None, ptr %found
  ret ptr %there
any:
  %asked = call ptr @flame_asked(ptr %x, ptr %name)
  ret ptr %asked
}

define internal ptr @flame_nth(ptr %x, i64 %i) alwaysinline {
  %type.p = getelementptr i8, ptr %x, i64 $type
  %type = load ptr, ptr %type.p
  %tuple = icmp eq ptr %type, @$tuple
  %inside = getelementptr i8, ptr %x, i64 $tuple_items
  %items.p = getelementptr i8, ptr %x, i64 $list_items
  %items = load ptr, ptr %items.p
  %base = select i1 %tuple, ptr %inside, ptr %items
  %at = getelementptr ptr, ptr %base, i64 %i
  %found = load ptr, ptr %at
  ret ptr %found
}

define internal i64 @flame_size(ptr %x) alwaysinline {
  %size.p = getelementptr i8, ptr %x, i64 $size
  %size = load i64, ptr %size.p
  ret i64 %size
}

define internal i32 @flame_write(ptr %x, ptr %cls, i64 %offset, ptr %name, ptr %value) noinline {
  %type.p = getelementptr i8, ptr %x, i64 $type
  %type = load ptr, ptr %type.p
  %same = icmp eq ptr %type, %cls
  br i1 %same, label %slot, label %any
slot:
  %p = getelementptr i8, ptr %x, i64 %offset
  call void @flame_set(ptr %p, ptr %value)
  ret i32 0
any:
  %done = call i32 @PyObject_SetAttr(ptr %x, ptr %name, ptr %value)
  ret i32 %done
}

define internal ptr @flame_item(ptr %x, i64 %i, ptr %index) noinline {
  %type.p = getelementptr i8, ptr %x, i64 $type
  %type = load ptr, ptr %type.p
  %tuple = icmp eq ptr %type, @$tuple
  br i1 %tuple, label %of.tuple, label %b
b:
  %list = icmp eq ptr %type, @$list
  br i1 %list, label %of.list, label %any
of.tuple:
  %inside = getelementptr i8, ptr %x, i64 $tuple_items
  br label %sized
of.list:
  %items.p = getelementptr i8, ptr %x, i64 $list_items
  %items = load ptr, ptr %items.p
  br label %sized
sized:
  %base = phi ptr [%inside, %of.tuple], [%items, %of.list]
  %size.p = getelementptr i8, ptr %x, i64 $size
  %size = load i64, ptr %size.p
  %there = icmp ult i64 %i, %size
  br i1 %there, label %good, label %any
good:
  %at = getelementptr ptr, ptr %base, i64 %i
  %found = load ptr, ptr %at
  ret ptr %found
any:
  call void @Py_IncRef(ptr %x)
  %got = call ptr @PyObject_GetItem(ptr %x, ptr %index)
  call void @Py_DecRef(ptr %x)
  %held = call ptr @flame_borrowed(ptr %got)
  ret ptr %held
}

define internal ptr @flame_referent(ptr %ref) noinline {
  %type.p = getelementptr i8, ptr %ref, i64 $type
  %type = load ptr, ptr %type.p
  %plain = icmp eq ptr %type, @$weakref
  br i1 %plain, label %look, label %ask
look:
$referent
ask:
  %told = call ptr @PyObject_Vectorcall(ptr %ref, ptr null, i64 0, ptr null)
  ret ptr %told
}

define internal ptr @flame_packed(ptr %args, i64 %count) noinline {
  %made = call ptr @PyTuple_New(i64 %count)
  %wrong = icmp eq ptr %made, null
  br i1 %wrong, label %end, label %next
next:
  %i = phi i64 [0, %0], [%i1, %move]
  %left = icmp slt i64 %i, %count
  br i1 %left, label %move, label %end
move:
  %from = getelementptr ptr, ptr %args, i64 %i
  %x = load ptr, ptr %from
  call void @flame_incref(ptr %x)
  %inside = getelementptr i8, ptr %made, i64 $tuple_items
  %to = getelementptr ptr, ptr %inside, i64 %i
  store ptr %x, ptr %to
  %i1 = add i64 %i, 1
  br label %next
end:
  ret ptr %made
}

define internal ptr @flame_otherwise(ptr %f, ptr %self, ptr %args, i64 %count, ptr %names) noinline {
entry:
  %unnamed = icmp eq ptr %names, null
  br i1 %unnamed, label %begin, label %named
named:
  %size.p = getelementptr i8, ptr %names, i64 $size
  %size = load i64, ptr %size.p
  br label %begin
begin:
  %more = phi i64 [0, %entry], [%size, %named]
  %every = add i64 %count, %more
  %room = add i64 %every, 1
  %copy = alloca ptr, i64 %room
  %function = icmp eq ptr %self, null
  %shift = select i1 %function, i64 0, i64 1
  store ptr %self, ptr %copy
  br label %next
next:
  %i = phi i64 [0, %begin], [%i1, %move]
  %left = icmp slt i64 %i, %every
  br i1 %left, label %move, label %pass
move:
  %from = getelementptr ptr, ptr %args, i64 %i
  %x = load ptr, ptr %from
  %at = add i64 %i, %shift
  %to = getelementptr ptr, ptr %copy, i64 %at
  store ptr %x, ptr %to
  %i1 = add i64 %i, 1
  br label %next
pass:
  %all = add i64 %count, %shift
  %got = call ptr @PyObject_Vectorcall(ptr %f, ptr %copy, i64 %all, ptr %names)
  ret ptr %got
}

define internal i32 @flame_truth(ptr %x) noinline {
  %true = icmp eq ptr %x, @$True
  br i1 %true, label %yes, label %a
a:
  %false = icmp eq ptr %x, @$False
  br i1 %false, label %no, label %b
b:
  %none = icmp eq ptr %x, @$None
  br i1 %none, label %no, label %c
c:
  %type.p = getelementptr i8, ptr %x, i64 $type
  %type = load ptr, ptr %type.p
  %list = icmp eq ptr %type, @$list
  %tuple = icmp eq ptr %type, @$tuple
  %sized = or i1 %list, %tuple
  br i1 %sized, label %count, label %ask
count:
  %size.p = getelementptr i8, ptr %x, i64 $size
  %size = load i64, ptr %size.p
  %some = icmp ne i64 %size, 0
  %some32 = zext i1 %some to i32
  ret i32 %some32
ask:
  call void @Py_IncRef(ptr %x)
  %got = call i32 @PyObject_IsTrue(ptr %x)
  call void @Py_DecRef(ptr %x)
  ret i32 %got
yes:
  ret i32 1
no:
  ret i32 0
}

define internal i32 @flame_equal(ptr %a, ptr %b, i32 %op) noinline {
  %type.p = getelementptr i8, ptr %a, i64 $type
  %type = load ptr, ptr %type.p
  %int = icmp eq ptr %type, @$int
  br i1 %int, label %plain, label %any
plain:
  %told = call i32 @PyObject_RichCompareBool(ptr %a, ptr %b, i32 %op)
  ret i32 %told
any:
  %answer = call ptr @PyObject_RichCompare(ptr %a, ptr %b, i32 %op)
  %wrong = icmp eq ptr %answer, null
  br i1 %wrong, label %fail, label %good
good:
  %truth = call i32 @flame_truth(ptr %answer)
  call void @Py_DecRef(ptr %answer)
  ret i32 %truth
fail:
  ret i32 -1
}

define internal i64 @flame_length(ptr %x) noinline {
  %type.p = getelementptr i8, ptr %x, i64 $type
  %type = load ptr, ptr %type.p
  %list = icmp eq ptr %type, @$list
  %tuple = icmp eq ptr %type, @$tuple
  %sized = or i1 %list, %tuple
  br i1 %sized, label %count, label %ask
count:
  %size.p = getelementptr i8, ptr %x, i64 $size
  %size = load i64, ptr %size.p
  ret i64 %size
ask:
  call void @Py_IncRef(ptr %x)
  %got = call i64 @PyObject_Size(ptr %x)
  call void @Py_DecRef(ptr %x)
  ret i64 %got
}

define internal i32 @flame_isinstance(ptr %x, ptr %cls) noinline {
  %type.p = getelementptr i8, ptr %x, i64 $type
  %type = load ptr, ptr %type.p
  %same = icmp eq ptr %type, %cls
  br i1 %same, label %yes, label %other
other:
  %float = icmp eq ptr %type, @$float
  %int = icmp eq ptr %type, @$int
  %none = icmp eq ptr %x, @$None
  %number = or i1 %float, %int
  %plain = or i1 %number, %none
  br i1 %plain, label %builtin, label %ask
builtin:
  %its = icmp eq ptr %cls, %type
  %object = icmp eq ptr %cls, @$object
  %either = or i1 %its, %object
  %told = zext i1 %either to i32
  %heap.p = getelementptr i8, ptr %cls, i64 $type
  %meta = load ptr, ptr %heap.p
  %ordinary = icmp eq ptr %meta, @$typetype
  br i1 %ordinary, label %tell, label %ask
tell:
  ret i32 %told
ask:
  %got = call i32 @PyObject_IsInstance(ptr %x, ptr %cls)
  ret i32 %got
yes:
  ret i32 1
}

define internal i32 @flame_append(ptr %list, ptr %x) alwaysinline {
  %size.p = getelementptr i8, ptr %list, i64 $size
  %size = load i64, ptr %size.p
  %room.p = getelementptr i8, ptr %list, i64 $list_room
  %room = load i64, ptr %room.p
  %fits = icmp slt i64 %size, %room
  br i1 %fits, label %put, label %grow
put:
  call void @flame_incref(ptr %x)
  %items.p = getelementptr i8, ptr %list, i64 $list_items
  %items = load ptr, ptr %items.p
  %at = getelementptr ptr, ptr %items, i64 %size
  store ptr %x, ptr %at
  %more = add i64 %size, 1
  store i64 %more, ptr %size.p
  ret i32 0
grow:
  %got = call i32 @PyList_Append(ptr %list, ptr %x)
  ret i32 %got
}

define internal ptr @flame_local(ptr %cell, ptr %local, ptr %dict, ptr %name) noinline {
  %held = call ptr @flame_dictionary(ptr %cell, ptr %local, ptr %dict)
  %none = icmp eq ptr %held, null
  br i1 %none, label %fail, label %look
look:
  %got = call ptr @PyDict_GetItemWithError(ptr %held, ptr %name)
  ret ptr %got
fail:
  call void @PyErr_Clear()
  ret ptr null
}

define internal i32 @flame_set_local(ptr %cell, ptr %local, ptr %dict, ptr %name, ptr %x) noinline {
  %held = call ptr @flame_dictionary(ptr %cell, ptr %local, ptr %dict)
  %none = icmp eq ptr %held, null
  br i1 %none, label %fail, label %put
put:
  %done = call i32 @PyDict_SetItem(ptr %held, ptr %name, ptr %x)
  ret i32 %done
fail:
  ret i32 -1
}

define internal ptr @flame_global(ptr %dict, ptr %module, ptr %name) noinline {
  %found = call ptr @PyDict_GetItemWithError(ptr %dict, ptr %name)
  %none = icmp eq ptr %found, null
  br i1 %none, label %ask, label %good
good:
  ret ptr %found
ask:
  %asked = call ptr @flame_asked(ptr %module, ptr %name)
  ret ptr %asked
}

define internal ptr @flame_dictionary(ptr %cell, ptr %local, ptr %dict) noinline {
  %state = call ptr @PyThreadState_Get()
  %id = call i64 @PyThreadState_GetID(ptr %state)
  %known = load ptr, ptr %cell
  %same.state = icmp eq ptr %known, %state
  %id.p = getelementptr i64, ptr %cell, i64 1
  %known.id = load i64, ptr %id.p
  %same.id = icmp eq i64 %known.id, %id
  %same = and i1 %same.state, %same.id
  %held.p = getelementptr ptr, ptr %cell, i64 2
  br i1 %same, label %look, label %find
find:
  %found = call ptr @PyObject_GetAttr(ptr %local, ptr %dict)
  %wrong = icmp eq ptr %found, null
  br i1 %wrong, label %fail, label %keep
keep:
  %old = load ptr, ptr %held.p
  store ptr %found, ptr %held.p
  store ptr %state, ptr %cell
  store i64 %id, ptr %id.p
  call void @flame_decref(ptr %old)                     ; (may run anything, and another thread meanwhile)
  ret ptr %found
look:
  %held = load ptr, ptr %held.p
  ret ptr %held
fail:
  ret ptr null
}
"""

#: what functions that run very often have in place
PLACED: Final = ("flame_read", "flame_read_or_none", "flame_write", "flame_item", "flame_truth")


def _placed() -> str:
    """These once more, as text that is put where they are called."""
    found = [re.search(rf"define internal \w+ @{name}\(.*?^}}\n", _TEXT, re.DOTALL | re.MULTILINE) for name in PLACED]
    texts = [m[0].replace(") noinline {", ") alwaysinline {", 1).replace("(", "_here(", 1) for m in found if m is not None]
    return "\n".join(texts)


#: how references are counted: by the interpreter; in 64 bits; in 32 bits, less than zero where an object is never freed
_COUNTS: Final = {
    "": """
define internal void @flame_incref(ptr %x) alwaysinline {
  call void @Py_IncRef(ptr %x)
  ret void
}

define internal void @flame_decref(ptr %x) alwaysinline {
  %none = icmp eq ptr %x, null
  br i1 %none, label %done, label %some
some:
  call void @Py_DecRef(ptr %x)
  br label %done
done:
  ret void
}
""",
    "i64": """
define internal void @flame_incref(ptr %x) alwaysinline {
  %count = load i64, ptr %x
  %more = add i64 %count, 1
  store i64 %more, ptr %x
  ret void
}

define internal void @flame_decref(ptr %x) alwaysinline {
  %none = icmp eq ptr %x, null
  br i1 %none, label %done, label %some
some:
  %count = load i64, ptr %x
  %less = sub i64 %count, 1
  store i64 %less, ptr %x
  %dead = icmp eq i64 %less, 0
  br i1 %dead, label %free, label %done
free:
  call void @_Py_Dealloc(ptr %x)
  br label %done
done:
  ret void
}
""",
    "i32": """
define internal void @flame_incref(ptr %x) alwaysinline {
  %count = load i32, ptr %x
  %ever = icmp slt i32 %count, 0
  br i1 %ever, label %done, label %counted
counted:
  %more = add i32 %count, 1
  store i32 %more, ptr %x
  br label %done
done:
  ret void
}

define internal void @flame_decref(ptr %x) alwaysinline {
  %none = icmp eq ptr %x, null
  br i1 %none, label %done, label %some
some:
  %count = load i32, ptr %x
  %ever = icmp slt i32 %count, 0
  br i1 %ever, label %done, label %counted
counted:
  %less = sub i32 %count, 1
  store i32 %less, ptr %x
  %dead = icmp eq i32 %less, 0
  br i1 %dead, label %free, label %done
free:
  call void @_Py_Dealloc(ptr %x)
  br label %done
done:
  ret void
}
""",
}


#: the newer function gives a new reference, or 0 and none; the older one, which it replaces, a borrowed one
_REFERENT: Final = (
    """  %place = alloca ptr
  %got = call i32 @PyWeakref_GetRef(ptr %ref, ptr %place)
  %gone = icmp eq i32 %got, 0
  br i1 %gone, label %none, label %some
some:
  %found = load ptr, ptr %place
  ret ptr %found
none:
  call void @Py_IncRef(ptr @$None)
  ret ptr @$None"""
    if sys.version_info >= (3, 13)
    else """  %found = call ptr @PyWeakref_GetObject(ptr %ref)
  call void @Py_IncRef(ptr %found)
  ret ptr %found"""
)


def text(numbers: Mapping[str, int | str], counts: str) -> str:
    """The functions, with declarations of the interpreter's; `counts` says how references are counted (`layout.counts`)."""
    declared = []
    for name, signature in INTERPRETER.items():
        result, _, arguments = signature.partition(" ")
        declared.append(f"declare {result} @{name}{arguments}")
    return (
        "\n".join(declared)
        + "\n"
        + _COUNTS[counts]
        + re.sub(r"\$(\w+)", lambda m: str(numbers[m[1]]), (_TEXT + _placed() + passing.TEXT).replace("$referent", _REFERENT))
    )
