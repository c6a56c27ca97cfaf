"""Helpers of these tests explain a failed assert as the tests themselves do."""

import pytest

pytest.register_assert_rewrite("tests.end_to_end.live_command")
