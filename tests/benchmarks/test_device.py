"""Rates of a device are measured on one thread, and the thread count is restored."""

import torch

from benchmarks.device import measure_device


def test_cpu_rates_are_measured_on_one_thread_and_restore_the_thread_count():
    threads = torch.get_num_threads()
    rates = measure_device("cpu")
    assert min(rates.matrix_rate, rates.copy_bandwidth) > 0
    assert "one thread" in rates.line()
    assert torch.get_num_threads() == threads
