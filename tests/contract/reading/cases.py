"""The table of cases: what a file holds, and the rows that every reader must find in it."""

from tests.contract.reading.file_cases import FILE_CASES
from tests.contract.reading.value_cases import VALUE_CASES

CASES = (*VALUE_CASES, *FILE_CASES)
