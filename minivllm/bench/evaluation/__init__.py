"""The paper's evaluation without its GPUs: the real scheduler and managers under a clock that is computed.

Memory decides how many requests run, and that needs no GPU to find out (`bench/simulation.py`). How many are
*served per second* also needs the seconds of a step. Here they come from a roofline model::

    requests -> real Scheduler, real memory manager -> plan -> StepModel.seconds(plan) -> the clock moves on
                           ^                                        dummy tokens              |
                           '------------------------------------------------------------------'

Read `step_time.py` (the model), `setups.py` (chips, models, what is the paper's and what is guessed),
`events.py` (the runs), `figures.py` (which runs make which figure, and the paper's numbers). Two commands
measure on this machine instead: `validate.py` (does the model predict real steps?) and `headline.py` (paging
against reservation on the real model).

Paper: section 6 and 7. vLLM V1 has no counterpart.
"""
