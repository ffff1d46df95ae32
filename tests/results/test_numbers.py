import math

from results import numbers


def test_metrics_have_three_digits_and_ranges_one_number_if_it_prints_the_same():
    printed = [numbers.three_digits(value) for value in (1.234, 12.0, 0.05, 919.4, 12345)]
    assert printed == ["1.23", "12.0", "0.0500", "919", "12,345"]
    assert (numbers.value_or_range(12.01, 12.04), numbers.value_or_range(11.9, 12.3)) == ("12.0", "11.9–12.3")


def test_numbers_of_claims_have_the_decimals_of_published_fids():
    printed = [numbers.as_published(value) for value in (992.4, 30.44, 25.4, 0.126, 64_000, 1_281_167, math.inf)]
    assert printed == ["992", "30.4", "25.40", "0.13", "64,000", "1.28M", "never"]
    assert numbers.mean_and_range([10.0, 12.0]) == "11.00 (10.00–12.00)"
    assert numbers.mean_and_range([10.0, 10.001]) == "10.00"
    assert numbers.relative_change(65, of=100) == ", −35%"
    assert numbers.relative_change(math.inf, of=100) == ""


def test_counts_durations_and_sizes_are_short():
    counts = [numbers.count(number) for number in (500, 64_000, 1_281_167, 6.75e8, 1.025e9, 1.46e20)]
    assert counts == ["500", "64k", "1.28M", "675M", "1.02B", "1.46e+20"]
    assert (numbers.counted(1, "job"), numbers.counted(1200, "job")) == ("1 job", "1,200 jobs")
    assert [numbers.duration(seconds) for seconds in (45, 720, 12_600, 63_267_480)] == [
        "45 s", "12 min", "3.5 h", "17,574 h"
    ]  # fmt: skip
    assert [numbers.disk_size(size) for size in (3e6, 84e9, 1.2e12)] == ["3 MB", "84 GB", "1.2 TB"]
