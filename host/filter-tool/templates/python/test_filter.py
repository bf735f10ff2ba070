"""Tests of the filter in ordinary Python: `python3 -m unittest`, or pytest."""

import unittest

from fake_host import Err, Errno, FakeHost


class FilterTest(unittest.TestCase):
    def test_what_was_written_is_read_back_and_the_disk_below_holds_it_changed(self):
        host = FakeHost(disk=bytes(4096))
        with host.serving(params=[("key", "32")]):
            host.pwrite(0, b"Hello")
            self.assertEqual(host.pread(0, 6), b"Hello ")
            self.assertEqual(bytes(host.disk[:6]), b"hELLO\0")

    def test_a_number_that_is_no_byte_is_refused(self):
        with self.assertRaises(Err) as refused:
            with FakeHost(disk=bytes(512)).serving(params=[("key", "256")]):
                pass
        self.assertEqual(refused.exception.value, "key=256: is not from 0 to 255")

    def test_an_error_of_the_disk_is_passed_on(self):
        host = FakeHost(disk=bytes(512))
        with host.serving():
            host.error = Errno.ENOSPC
            with self.assertRaises(Err) as failed:
                host.pwrite(0, b"x")
            self.assertEqual(failed.exception.value, Errno.ENOSPC)


if __name__ == "__main__":
    unittest.main()
