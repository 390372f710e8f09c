"""LLVM functions that translated code calls, beside those of `flame.native.pieces`: arguments and errors that are passed on.

flame_packed_behind(x, args, count)
                           a tuple of x and the arguments of a call by position
flame_rest_dict(args, count, names)
                           the arguments by name of a call, as a dictionary
flame_pass_on(name, x, args, count, names)
                           x.name(*args, **kwargs)
flame_chain(kept...)       the error that is set gets the one that was put aside for its context
"""

from __future__ import annotations

from typing import Final

TEXT: Final = """
define internal ptr @flame_packed_behind(ptr %x, ptr %args, i64 %count) noinline {
  %all = add i64 %count, 1
  %made = call ptr @PyTuple_New(i64 %all)
  %wrong = icmp eq ptr %made, null
  br i1 %wrong, label %end, label %first
first:
  %inside = getelementptr i8, ptr %made, i64 $tuple_items
  call void @flame_incref(ptr %x)
  store ptr %x, ptr %inside
  br label %next
next:
  %i = phi i64 [0, %first], [%i1, %move]
  %left = icmp slt i64 %i, %count
  br i1 %left, label %move, label %end
move:
  %from = getelementptr ptr, ptr %args, i64 %i
  %y = load ptr, ptr %from
  call void @flame_incref(ptr %y)
  %i1 = add i64 %i, 1
  %to = getelementptr ptr, ptr %inside, i64 %i1
  store ptr %y, ptr %to
  br label %next
end:
  ret ptr %made
}

define internal ptr @flame_rest_dict(ptr %args, i64 %count, ptr %names) noinline {
  %made = call ptr @PyDict_New()
  %wrong = icmp eq ptr %made, null
  %unnamed = icmp eq ptr %names, null
  %empty = or i1 %wrong, %unnamed
  br i1 %empty, label %done, label %some
some:
  %size.p = getelementptr i8, ptr %names, i64 $size
  %size = load i64, ptr %size.p
  br label %next
next:
  %i = phi i64 [0, %some], [%i1, %more]
  %left = icmp slt i64 %i, %size
  br i1 %left, label %put, label %done
put:
  %at = add i64 %count, %i
  %x.p = getelementptr ptr, ptr %args, i64 %at
  %x = load ptr, ptr %x.p
  %inside = getelementptr i8, ptr %names, i64 $tuple_items
  %name.p = getelementptr ptr, ptr %inside, i64 %i
  %name = load ptr, ptr %name.p
  %put.it = call i32 @PyDict_SetItem(ptr %made, ptr %name, ptr %x)
  %failed = icmp slt i32 %put.it, 0
  br i1 %failed, label %fail, label %more
more:
  %i1 = add i64 %i, 1
  br label %next
fail:
  call void @Py_DecRef(ptr %made)
  ret ptr null
done:
  ret ptr %made
}

define internal ptr @flame_pass_on(ptr %method, ptr %self, ptr %args, i64 %count, ptr %names) noinline {
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
  %room = add i64 %every, 2
  %place = alloca ptr, i64 %room
  %copy = getelementptr ptr, ptr %place, i64 1
  store ptr %self, ptr %copy
  br label %next
next:
  %i = phi i64 [0, %begin], [%i1, %move]
  %left = icmp slt i64 %i, %every
  br i1 %left, label %move, label %pass
move:
  %from = getelementptr ptr, ptr %args, i64 %i
  %x = load ptr, ptr %from
  %i1 = add i64 %i, 1
  %to = getelementptr ptr, ptr %copy, i64 %i1
  store ptr %x, ptr %to
  br label %next
pass:
  %all = add i64 %count, 1
  %spare = or i64 %all, -9223372036854775808
  %got = call ptr @PyObject_VectorcallMethod(ptr %method, ptr %copy, i64 %spare, ptr %names)
  ret ptr %got
}

define internal void @flame_chain(ptr %type, ptr %value, ptr %trace) noinline {
  %new.type = alloca ptr
  %new.value = alloca ptr
  %new.trace = alloca ptr
  call void @PyErr_Fetch(ptr %new.type, ptr %new.value, ptr %new.trace)
  call void @PyErr_NormalizeException(ptr %new.type, ptr %new.value, ptr %new.trace)
  call void @PyErr_NormalizeException(ptr %type, ptr %value, ptr %trace)
  %old = load ptr, ptr %value
  %old.trace = load ptr, ptr %trace
  %new = load ptr, ptr %new.value
  %same = icmp eq ptr %old, %new
  br i1 %same, label %drop, label %link
link:
  %traced = icmp ne ptr %old.trace, null
  br i1 %traced, label %keep, label %put
keep:
  %kept = call i32 @PyException_SetTraceback(ptr %old, ptr %old.trace)
  br label %put
put:
  call void @PyException_SetContext(ptr %new, ptr %old)
  br label %done
drop:
  call void @flame_decref(ptr %old)
  br label %done
done:
  %old.type = load ptr, ptr %type
  call void @flame_decref(ptr %old.type)
  call void @flame_decref(ptr %old.trace)
  %type.now = load ptr, ptr %new.type
  %trace.now = load ptr, ptr %new.trace
  call void @PyErr_Restore(ptr %type.now, ptr %new, ptr %trace.now)
  ret void
}
"""
