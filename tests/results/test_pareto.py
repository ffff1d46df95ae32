from results.pareto import front


def test_the_front_is_of_items_that_no_other_dominates():
    points = {0: (1.0, 9.0), 1: (2.0, 5.0), 2: (2.0, 6.0), 3: (3.0, 5.0), 4: (2.0, 5.0), 5: (4.0, 1.0), 6: (4.0, 2.0)}
    assert front(list(points), points.__getitem__) == [0, 1, 4, 5]  # 1 and 4 are equal
    assert front([5, 4, 1, 0], points.__getitem__) == [0, 4, 1, 5]
    assert front([], points.__getitem__) == []
