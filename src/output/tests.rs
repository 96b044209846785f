use super::*;

const PAIRS: Shape = Shape::Dense { width: 2 };

#[test]
fn items_are_put_and_viewed_by_number() {
    let mut output = Output::new(PAIRS, 3).unwrap();
    output.put(2, View::Dense(&[3.0, 4.0]));
    output.put(0, View::Dense(&[1.0, 2.0]));
    assert_eq!((output.shape(), output.rows()), (PAIRS, 3));
    assert_eq!((output.view(1), output.view(2)), (View::Dense(&[0.0, 0.0]), View::Dense(&[3.0, 4.0])));
    let Output::Dense(dense) = output else { panic!() };
    assert_eq!(dense.into_values(), [1.0, 2.0, 0.0, 0.0, 3.0, 4.0]);
}

#[test]
fn a_reset_output_is_zero_and_has_the_new_shape() {
    let mut output = Output::default();
    output.reset(PAIRS, 1).unwrap();
    output.put(0, View::Dense(&[1.0, 2.0]));
    output.reset(Shape::Dense { width: 3 }, 2).unwrap();
    assert_eq!((output.rows(), output.shape().width()), (2, 3));
    assert_eq!(output, Output::new(Shape::Dense { width: 3 }, 2).unwrap());
}

#[test]
fn an_item_counts_its_bytes() {
    let mut output = Output::new(PAIRS, 1).unwrap();
    output.put(0, View::Dense(&[1.0, f32::NAN]));
    assert!(!output.view(0).is_finite());
    output.put(0, View::Dense(&[1.0, 2.0]));
    assert!(output.view(0).is_finite());
    let item = output.view(0).to_item();
    assert_eq!((item.bytes(), item.view()), (8, View::Dense(&[1.0, 2.0])));
    assert_eq!(output.into_item(), item);
}

#[test]
fn every_kind_is_put_viewed_and_counted() {
    let sparse = SparseVector { indices: [2, 7].into(), values: [0.5, 1.5].into() };
    let multi = MultiVector { values: [1.0, 2.0, 3.0, 4.0].into(), width: 2 };
    for (shape, item, bytes) in [
        (Shape::Dense { width: 2 }, Item::Dense([1.0, 2.0].into()), 8),
        (Shape::Scores { labels: 1 }, Item::Scores([3.0].into()), 4),
        (Shape::Sparse { vocabulary: 9 }, Item::Sparse(sparse), 16),
        (Shape::Multi { width: 2 }, Item::Multi(multi), 16),
    ] {
        let mut output = Output::default();
        output.reset(shape, 1).unwrap();
        assert_eq!((output.shape(), output.rows()), (shape, 1));
        assert_ne!(output.view(0), item.view());
        output.put(0, item.view());
        assert_eq!((output.view(0), item.bytes()), (item.view(), bytes));
        assert!(output.view(0).is_finite());
        assert_eq!(output.into_item(), item);
    }
}

#[test]
fn memory_that_is_refused_is_an_error() {
    assert!(Output::new(Shape::Dense { width: 1 << 40 }, 1 << 40).is_err());
}
