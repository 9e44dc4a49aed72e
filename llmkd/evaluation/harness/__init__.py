"""What ``llmkd-eval`` runs: benchmarks through lm-evaluation-harness, and our own measures beside them.

command     the options, and the whole way of a call
options     what they mean: lm_eval's spelling of values
candidate   MODEL_OR_RUN -> weights, their fingerprint, where results go
suites      eval/suites/*.yaml
catalogue   names of tasks -> lm_eval's tasks and ours, with their versions
benchmark   one task through ``lm_eval.simple_evaluate``
scores      what lm_eval returns -> metrics with intervals, items
measures    our own names: a table, name -> function
written     lm_eval's files as lm_eval writes them; the table in the terminal
local       what the tasks in eval/tasks read, ask and grade
"""
