"""What ``KwiseConfig`` refuses."""

import pytest

from kwise import KwiseConfig


@pytest.mark.parametrize("options", [{"max_steps": 0}, {"num_train_epochs": 0}])
def test_a_run_of_no_steps_is_refused(tmp_path, options):
    with pytest.raises(ValueError, match="nothing to train"):
        KwiseConfig(str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize(
    "options",
    [{"label_smoothing_factor": 0.1}, {"dataloader_drop_last": True}, {"torch_empty_cache_steps": 2}],
)
def test_settings_that_rankings_do_not_go_by_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: would have no effect"):
        KwiseConfig(str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize(
    "options", [{"neftune_noise_alpha": 5.0}, {"enable_jit_checkpoint": True}, {"ignore_data_skip": True}]
)
def test_settings_that_would_do_harm_are_refused_with_the_reason(tmp_path, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: .*; leave it alone"):
        KwiseConfig(str(tmp_path), use_cpu=True, **options)


@pytest.mark.parametrize("metric", ["longer_wins", "distance_1", "accuracy"])
def test_a_best_checkpoint_by_what_is_no_quality_is_refused(tmp_path, metric):
    with pytest.raises(ValueError, match=f"metric_for_best_model: '{metric}' is not one of loss, pair_accuracy, "):
        KwiseConfig(str(tmp_path), use_cpu=True, metric_for_best_model=metric)


@pytest.mark.parametrize("options", [{"gradient_accumulation_steps": 2}, {"per_device_train_batch_size": 4}])
def test_the_trainers_own_batch_settings_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match="rankings_per_step"):
        KwiseConfig(output_dir=str(tmp_path), **options)


@pytest.mark.parametrize("options", [{"objective": "dpo"}, {"rankings_per_step": 0}, {"tokens_per_row": 0}])
def test_impossible_settings_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        KwiseConfig(output_dir=str(tmp_path), **options)


def test_options_that_the_objective_does_not_take_are_refused(tmp_path):
    with pytest.raises(ValueError, match="smoothing: 'plackett_luce' takes only top"):
        KwiseConfig(output_dir=str(tmp_path), objective_options={"smoothing": 0.1})
