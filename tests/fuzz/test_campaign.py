"""What a campaign makes of libFuzzer's words."""

from tests.fuzz.campaign import Had, had

SAID = """INFO: seed corpus: files: 3 min: 46b max: 1279b total: 2kb rss: 380Mb
#4\tINITED cov: 41 ft: 80 corp: 3/2Kb exec/s: 0 rss: 380Mb
#23937\tREDUCE cov: 73 ft: 274 corp: 73/110Kb lim: 65536 exec/s: 4787 rss: 384Mb L: 3649/41769 MS: 1 Custom-
"""
DONE = """#24187\tDONE   cov: 74 ft: 274 corp: 73/109Kb lim: 65536 exec/s: 4031 rss: 384Mb
Done 24187 runs in 6 second(s)
stat::number_of_executed_units: 24187
"""


def test_the_last_word_counts() -> None:
    assert had("vote", SAID + DONE, 0, 6.0) == Had("vote", 24_187, 74, 0, 6.0)
    assert had("vote", SAID, 1, 5.0) == Had("vote", 23_937, 73, 1, 5.0)
    assert had("vote", "it did not start", 1, 0.0) == Had("vote", 0, 0, 1, 0.0)
