"""Why a program was not captured as one graph, once and for all: every reason, by a code that never changes.

    FL1xxx  the captured graph ends here and another begins after it (a break)
    FL2xxx  a call took another path than those that are known; the new one is recorded
    FL3xxx  something runs eagerly, or op by op, that was to run compiled
    FL4xxx  `flame.compile` refuses what it is given
    FL5xxx  mode="replay" runs the Python that it would skip

`REASONS` is the table. Whoever raises or records one names its row here, and gives what its text leaves open. The page
docs/graph-breaks.md shows a program and a way out for each code.
"""

from __future__ import annotations

from dataclasses import dataclass

REASONS: dict[str, Reason] = {}


@dataclass(frozen=True, slots=True)
class Reason:
    """One row. `happened` follows the user's line in a message, with {} for what is known only there; `remedy` says what to
    change."""

    code: str
    title: str
    happened: str
    remedy: str

    def text(self, *details: object) -> str:
        """What statistics and explanations show: the code, and what happened."""
        return f"{self.code} {self.happened.format(*details)}"


def _reason(code: str, title: str, happened: str, remedy: str) -> Reason:
    if code in REASONS:
        raise ValueError(f"{code} is given twice")
    r = REASONS[code] = Reason(code, title, happened, remedy)
    return r


# ---- the graph ends

VALUE_READ = _reason(
    "FL1001",
    "value read",
    "a value is read",
    "Keep the number in a tensor (flame.where instead of if, a list of tensors instead of item()), or read it after the call.",
)
WRITTEN_VALUE_READ = _reason(
    "FL1002",
    "written value read",
    "a value is read that was written in the region",
    "Read it before the write, or after the call.",
)
SHARED_MEMORY_WRITTEN = _reason(
    "FL1003",
    "shared memory written",
    "memory that NumPy or another tensor shares is written",
    "Compute a new tensor instead of writing in place, or copy the memory with clone() before the call.",
)
OVERLAPPING_READ = _reason(
    "FL1004",
    "overlapping memory read",
    "memory that was written is read through another tensor",
    "Take the view inside the compiled function, from the tensor that is written.",
)
CUSTOM_FUNCTION = _reason(
    "FL1005",
    "custom function",
    "a result of autograd.Function {} has a gradient of its own, which is asked for after the call",
    "Call backward() inside of the compiled function, or write it with flame's operations and leave the derivative to autograd.",
)
DISABLED = _reason(
    "FL1006",
    "disabled function",
    "{} is disabled for compilation",
    "Remove flame.compiler.disable, or call the function before or after what is to be one graph.",
)
HOOK_REGISTERED = _reason(
    "FL1007",
    "hook registered",
    "a gradient hook is registered on a result, and is to be called after the call, or reads a value",
    "Call backward() inside of the compiled function, and keep what the hook notes in tensors.",
)
HOOK_CALLED = _reason(
    "FL1008",
    "hook called",
    "a gradient hook is to be called",
    "Call backward() outside of the compiled function, or apply what the hook does to .grad after it.",
)
GRADIENT_LEAVES = _reason(
    "FL1009",
    "gradient leaves the graph",
    "the gradient flows to tensors from outside of the captured graph",
    "Compute the loss from the parameters inside the same compiled function, without breaks between the two.",
)
# (FL1010 was backward(inputs=...), which is captured now.)
NO_GRADIENT = _reason(
    "FL1011",
    "gradient of what needs none",
    "a gradient is asked for of a tensor that needs none",
    "Call requires_grad_() on it before the compiled function.",
)
DETACHED_IN_PLACE = _reason(
    "FL1012", "detached in place", "detach_() takes a tensor out of its graph", "Use detach(), which is captured."
)
REQUIRES_GRAD_CHANGED = _reason(
    "FL1013",
    "requires_grad changed",
    "requires_grad is changed",
    "Set it before the compiled function; for one part of it use flame.no_grad() or detach().",
)
GRAD_FN_READ = _reason(
    "FL1014", "grad_fn read", "grad_fn of a result is read", "Ask requires_grad or is_leaf, which are known without computing."
)
DATA_ASSIGNED = _reason(
    "FL1015",
    "data assigned",
    ".data is assigned",
    "Write into the tensor: with flame.no_grad(): x.copy_(new).",
)
SHAPE_IN_PLACE = _reason(
    "FL1016",
    "shape changed in place",
    "{}_() changes the shape of a tensor in place",
    "Use the form without the underscore, which gives a view.",
)

COMPLEX = _reason(
    "FL1017",
    "complex numbers",
    "{} of complex numbers runs by itself",
    "Keep real and imaginary parts as two real tensors where the arithmetic is hot; a Fourier transform is a library call anyway.",
)

SHARED_MEMORY_READ = _reason(
    "FL1018",
    "shared memory changed",
    "memory that NumPy shares was written between forward and backward",
    "Write it after backward(), or give the computation a clone() of it.",
)

OTHER_DEVICE = _reason(
    "FL1019",
    "another device",
    "{} ends the kernels of one device",
    "Move what the function needs to the device before it is called; a segment of kernels runs on one device.",
)

# ---- another path

OTHER_OPERATION = _reason(
    "FL2001",
    "another operation",
    "{} follows, where {} was recorded",
    "Each path is compiled once. Where paths never end (a branch on a counter), compute both sides and choose with flame.where.",
)
OTHER_OPERANDS = _reason(
    "FL2002",
    "other operands",
    "{} has other operands, numbers or parameters than recorded: {}",
    "Keep static parameters the same from call to call. A number or size that varies becomes a run-time input by itself.",
)
OTHER_TENSOR = _reason(
    "FL2003",
    "another kind of tensor",
    "a tensor of {} is used, where {} was recorded",
    "Sizes of 2 and more become symbolic when a second one is seen; each dtype, number of dimensions, size of 0 or 1, memory "
    "layout and requires_grad is a path of its own: keep these the same from call to call.",
)
OTHER_WRITE = _reason(
    "FL2004",
    "another write",
    "memory is written, where {} was recorded",
    "Write into the same tensors on every call, or copy with flame.where where nothing is to change.",
)
OTHER_GRADIENT = _reason(
    "FL2005",
    "another gradient",
    "a gradient is taken, where {} was recorded",
    "Call backward() at the same place on every call, with the same arguments.",
)
OTHER_END = _reason(
    "FL2006",
    "another end",
    "the graph ends, where {} was recorded",
    "Early returns and loops of varying length make a path each: give them few different lengths.",
)

# ---- handed to eager

TOO_MANY_PATHS = _reason(
    "FL3001",
    "too many paths",
    "more than {} different paths were seen, the last from {} on",
    "Make paths fewer (see FL2001 to FL2006; where a loop runs a number of times that varies, compile its body, or pad to a few "
    'lengths), or raise the limit: flame.compile(..., options={"recompile_limit": n}).',
)
TOO_MANY_STEPS = _reason(
    "FL3002",
    "too many steps",
    "more than {} steps were recorded, the last at {}",
    "Compile a smaller function (one training step, one layer), and call reset() where old paths are of no use.",
)
NOT_COMPILED = _reason(
    "FL3003",
    "not compiled",
    "{} could not be compiled and runs op by op: {}",
    "Results are right, but slow. It is a bug of flame's: please report it with the text above.",
)
OTHER_THREAD = _reason(
    "FL3004",
    "another thread",
    "called while another thread was inside a compiled function, and run eagerly",
    "Call compiled functions from one thread at a time (kernels use all threads by themselves), or compile with mode='replay': "
    "replayed calls that write nothing and carry no gradient run on any number of threads at once.",
)
RECOMPILE_FORBIDDEN = _reason(
    "FL3005",
    "recompilation forbidden",
    "{} while the stance is 'fail_on_recompile'",
    "Warm the function up with every kind of input before the stance is set (twice each: one records, one compiles).",
)

SLOWER = _reason(
    "FL3006",
    "slower than eager",
    "compiled, the function took {:.2f} times as long as eagerly, in two rounds of measurements: it runs eagerly for now",
    "Compile more at a time (the whole step, not a single operation), or leave the function eager. It is measured again from time "
    'to time; options={"never_slower": False} or FLAME_NEVER_SLOWER=0 keeps it compiled.',
)
FASTER_AGAIN = _reason(
    "FL3007",
    "no slower any more",
    "measured again, the function took {:.2f} times as long compiled as eagerly: it runs compiled",
    "Nothing is to be done. Where this comes back and forth, the two are about as fast.",
)

TWICE_OUTSIDE = _reason(
    "FL3008",
    "second derivatives outside",
    "the results of {} calls in a row were differentiated twice outside of the function: the next {} calls run eagerly",
    "Take the gradient (create_graph=True) in the compiled function, too: then second derivatives are compiled with the rest.",
)

# ---- refused

GENERATOR = _reason(
    "FL4001",
    "generator or coroutine",
    "{} is a {}, whose body does not run in one go",
    "Compile the function that computes one item, and call it from there.",
)

# ---- Python runs although mode="replay" would skip it

_KEEP = "Nothing is lost but time: the call is followed as in the default mode."
REPLAY_BROKEN = _reason(
    "FL5001",
    "not one graph",
    "replay: the call was not one followed graph ({})",
    f"Remove the breaks (FL1001 to FL1019), or the branches that make each call take another path. {_KEEP}",
)
REPLAY_OUTSIDE = _reason(
    "FL5002",
    "unknown outside tensor",
    "replay: a tensor of {} is used that was not found among arguments, modules, closures and globals",
    "Pass it as an argument, or register it as a buffer of a module. Make constants with full() or arange(), not from lists.",
)
REPLAY_WRITES = _reason(
    "FL5003",
    "outside memory written",
    "replay: memory of {} is written, which is no argument, parameter or buffer",
    "Pass the tensor as an argument, or register it as a buffer.",
)
REPLAY_HOOKS = _reason(
    "FL5004",
    "hooks",
    "replay: {} has hooks, which are Python",
    "Remove the hooks, or do what they do in the function itself.",
)
REPLAY_RANDOM = _reason(
    "FL5005",
    "another random stream",
    "replay: random numbers are drawn from a generator of its own, or the stream is set in the function",
    "Draw from the default generator, and call manual_seed() outside.",
)
REPLAY_NUMBER = _reason(
    "FL5006",
    "number from elsewhere",
    "replay: a Python number was {} and is {} now, although all that was seen to lead to it is the same",
    "Pass what changes as a tensor; a clock, a counter or a random number of Python's can't be replayed.",
)
REPLAY_VIEW = _reason(
    "FL5007",
    "view of an input returned",
    "replay: a result shares the memory of a tensor from outside ({})",
    "Return a copy: clone() it.",
)
REPLAY_RESULT = _reason(
    "FL5008",
    "result that may differ",
    "replay: the result holds {}",
    "Return tensors, and numbers and strings that are the same at each call, in tuples, lists and dicts.",
)
REPLAY_STATE = _reason(
    "FL5009",
    "Python state is written",
    "replay: the call changes what its Python can see ({})",
    "Keep counters and caches out of the function, or in tensors that are buffers of a module.",
)
REPLAY_OPAQUE = _reason(
    "FL5010",
    "can't be looked into",
    "replay: the function can see {}, whose changes can't be told",
    "Keep what the function reads in numbers, strings, lists, dicts, modules and plain objects.",
)
REPLAY_KEPT = _reason(
    "FL5011",
    "tensor kept elsewhere",
    "replay: {} outlives the call without being returned",
    "Return the tensor, or write it into a buffer.",
)
REPLAY_ALIAS = _reason(
    "FL5012",
    "one memory under two names",
    "replay: {} is reached in two ways",
    "Pass each tensor once, and nothing as an argument that the function sees anyway.",
)
REPLAY_VARIES = _reason(
    "FL5013",
    "too many arguments to replay",
    "replay: more than {} combinations of shapes and numbers were seen",
    "Pass numbers that vary as tensors, and pad batches to a few sizes.",
)
REPLAY_WRONG = _reason(
    "FL5014",
    "replay disagrees",
    "an audit of mode='replay' ran the Python of {} and met a difference: {}",
    "Results since the audit before this one may be wrong. What differs depends on something that replay can't see: pass it as "
    "an argument, or compile with mode='default'.",
)
REPLAY_READS = _reason(
    "FL5015",
    "value of an input read",
    "replay: Python reads the values of a tensor from outside",
    "Keep the number in a tensor, or pass it as a Python number: then each value is a kind of call of its own.",
)
