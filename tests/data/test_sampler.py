from vlmpeft.data.batches.sampler import BucketBatchSampler

LENGTHS = [(37 * i) % 101 + 5 for i in range(203)]


def test_an_epoch_is_a_permutation_and_epochs_differ():
    sampler = BucketBatchSampler(LENGTHS, 8, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(i for batch in first for i in batch) == list(range(203))
    assert first != second
    assert len(first) == len(sampler) == 26


def test_order_is_a_function_of_seed_and_epoch():
    assert list(BucketBatchSampler(LENGTHS, 8, seed=1)) == list(
        BucketBatchSampler(LENGTHS, 8, seed=1)
    )
    assert list(BucketBatchSampler(LENGTHS, 8, seed=1)) != list(
        BucketBatchSampler(LENGTHS, 8, seed=2)
    )


def test_resuming_in_mid_epoch_yields_the_rest_and_then_whole_epochs():
    whole = BucketBatchSampler(LENGTHS, 8, seed=1)
    whole.set_epoch(2)
    expected = list(whole)
    resumed = BucketBatchSampler(LENGTHS, 8, seed=1)
    resumed.resume(2, 10)
    resumed.set_epoch(2)
    assert list(resumed) == expected[10:]
    assert len(resumed) == 26
    resumed.set_epoch(3)
    assert len(list(resumed)) == 26


def test_batches_hold_similar_lengths():
    def waste(batches):
        used = sum(LENGTHS[i] for batch in batches for i in batch)
        return sum(max(LENGTHS[i] for i in batch) * len(batch) for batch in batches) / used

    plain = [list(range(i, min(i + 8, 203))) for i in range(0, 203, 8)]
    assert waste(list(BucketBatchSampler(LENGTHS, 8))) < 1.1 < 1.5 < waste(plain)


def test_ranks_share_an_epoch_in_equal_numbers():
    ranks = [list(BucketBatchSampler(LENGTHS, 8, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(batches) for batches in ranks] == [9, 9, 9]
    assert {i for batches in ranks for batch in batches for i in batch} == set(range(203))
