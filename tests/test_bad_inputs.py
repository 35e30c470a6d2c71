"""Bad inputs, by the thousand: each one is an error of the project, of one line, that says what was wrong.

`tests/bad_inputs.py` is the table: functions with good arguments, and what is bad for each kind of argument."""
import time
import warnings

import pytest

from nmc_workbench.core.errors import InputError, TrainingError
from tests.bad_inputs import MODULES, NOTHING, Context, Entry, Kind, good, rows_of

@pytest.fixture(scope='module')
def context(tmp_path_factory, tiny_run):
    return Context(tmp_path_factory.mktemp('bad'), tiny_run)


def entries(module, context):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield from (Entry(*e) for e in module(context))


def wrong_with(call, arguments):
    "What is wrong with the answer to a bad input; empty if it is an error as it should be."
    try: call(**arguments)
    except (InputError, TrainingError) as e:
        text = str(e)
        clear = text and '\n' not in text and len(text) < 400
        return '' if clear else f'message of {len(text)} characters: {text[:80]}'
    except Exception as e: return f'{type(e).__name__}: {" ".join(str(e).split())[:80]}'
    return 'no error'


def run(module, context):
    "The number of rows of a module, and those that were not refused as they should be."
    n, wrong = 0, []
    for entry in entries(module, context):
        for name, call, arguments in rows_of(entry, context.tmp):
            found, n = wrong_with(call, arguments), n + 1
            if found: wrong.append(f'{name}: {found}')
    return n, wrong


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('module', MODULES, ids=lambda m: m.__name__)
def test_every_bad_input_is_one_clear_error(module, context):
    n, wrong = run(module, context)
    assert n > 10 and not wrong, f'{len(wrong)} of {n}:\n' + '\n'.join(wrong)


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('module', MODULES, ids=lambda m: m.__name__)
def test_the_good_arguments_of_the_table_are_taken(module, context):
    for entry in entries(module, context):
        values = entry.arguments.values()
        if not any(isinstance(k, Kind) and k.good is NOTHING for k in values): entry.call(**good(entry.arguments))


@pytest.mark.timing
@pytest.mark.filterwarnings('ignore')
def test_the_whole_table_takes_less_than_a_minute(context):
    for module in MODULES: next(entries(module, context))       # what is imported or trained once
    start = time.perf_counter()
    n = sum(run(module, context)[0] for module in MODULES)
    assert n >= 500 and time.perf_counter() - start < 60
