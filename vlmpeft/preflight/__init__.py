"""What will happen, told before it does.

In: a plan and the config of a base. Out: leaks, unreachable parts, engines that cannot serve it, bytes and FLOPs.
May import: evaluation, adapters, data, strategies, base, runtime. Loads no weights.
"""
