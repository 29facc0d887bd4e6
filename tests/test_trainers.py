"""The roads of the trainers that people use: every run ends exact, or says before its first step why it cannot."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import setpoint

EPOCHS, BATCHES = 4, 5
STEPS = EPOCHS * BATCHES


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 4))


def examples(batches: int = BATCHES) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(
        torch.randn(8 * batches, 12, generator=generator), torch.randint(4, (8 * batches,), generator=generator)
    )


def assert_exact(sparsifier: setpoint.Sparsifier, model: nn.Module) -> None:
    report = sparsifier.report()
    assert report.exact
    assert report.differences == {}
    masks = sparsifier.masks
    assert not any(bool((model.get_parameter(name)[~mask] != 0).any()) for name, mask in masks.items())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(0.25 * sum(mask.numel() for mask in masks.values()))
    kept = sum(int((model.get_parameter(name) != 0).sum()) for name in masks)
    assert kept == report.params_kept


class TestHuggingFace:
    """`transformers.Trainer`."""

    @staticmethod
    def trainer(folder, callback=None, **options):
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")

        class Model(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = network()

            def forward(self, inputs, labels):
                logits = self.net(inputs)
                return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

        class Examples(Dataset):
            data = examples()

            def __len__(self):
                return len(self.data)

            def __getitem__(self, i):
                inputs, labels = self.data[i]
                return {"inputs": inputs, "labels": labels}

        model = Model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            **{
                "num_train_epochs": EPOCHS,
                "per_device_train_batch_size": 8,
                "use_cpu": True,
                "report_to": [],
                "disable_tqdm": True,
                "save_strategy": "no",
                "logging_strategy": "no",
                "remove_unused_columns": False,
            }
            | options,
        )
        return (
            model,
            optimizer,
            transformers.Trainer(
                model,
                arguments,
                train_dataset=Examples(),
                eval_dataset=Examples(),
                optimizers=(optimizer, None),
                callbacks=[callback] if callback else None,
            ),
        )

    @pytest.mark.parametrize("method", ["gsp", "rigl"])
    def test_gradients_are_accumulated(self, tmp_path, method):
        model, optimizer, trainer = self.trainer(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4)
        sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.75, steps=STEPS)
        trainer.train()
        assert sparsifier.step == STEPS
        assert_exact(sparsifier, model)

    def test_steps_counted_in_batches_are_told_at_the_end(self, tmp_path):
        model, optimizer, trainer = self.trainer(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=4)
        sparsifier = setpoint.Sparsifier(model, optimizer, target=0.75, steps=4 * STEPS)
        trainer.train()
        with pytest.warns(setpoint.UnfinishedRunWarning, match=f"step {STEPS} of {4 * STEPS}.*accumulation"):
            assert not sparsifier.report().exact

    @pytest.mark.parametrize("method", ["magnitude", "set"])
    @pytest.mark.parametrize("built", ["before", "on_train_begin"])
    def test_a_checkpoint_is_resumed(self, tmp_path, method, built):
        import transformers

        runs = []

        def build(model, optimizer):
            runs.append(setpoint.Sparsifier(model, optimizer, method=method, target=0.75, steps=STEPS))

        class Build(transformers.TrainerCallback):
            def on_train_begin(self, args, state, control, model=None, optimizer=None, **others):
                build(model, optimizer)

        def start():
            callback = Build() if built == "on_train_begin" else None
            model, optimizer, trainer = self.trainer(
                tmp_path, callback, save_strategy="steps", save_steps=STEPS * 3 // 5, lr_scheduler_type="constant"
            )
            if callback is None:
                build(model, optimizer)
            return model, trainer

        model, trainer = start()
        trainer.train()
        whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        again, trainer = start()
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS * 3 // 5}"))
        assert runs[-1].step == STEPS
        assert_exact(runs[-1], again)
        assert all(torch.equal(whole[name], tensor) for name, tensor in again.state_dict().items())

    def test_the_best_model_of_the_dense_phase_is_no_sparse_one(self, tmp_path):
        model, optimizer, trainer = self.trainer(
            tmp_path,
            eval_strategy="epoch",
            save_strategy="epoch",
            load_best_model_at_end=True,
            metric_for_best_model="loss",
            learning_rate=0.5,
        )
        optimizer.param_groups[0]["lr"] = 0.5  # so that the first epoch is the best
        sparsifier = setpoint.Sparsifier(
            model,
            optimizer,
            method="magnitude",
            target=0.75,
            steps=STEPS,
            schedule=setpoint.Schedule(begin=0.3, end=0.9),
        )
        trainer.train()
        assert sparsifier.phase == "frozen"
        if not trainer.state.best_model_checkpoint.endswith(str(STEPS)):
            assert not sparsifier.report().exact
            assert "weights were loaded" in sparsifier.report().differences["net.0.weight"]
        sparsifier.apply()
        assert_exact(sparsifier, model)


class TestAccelerate:
    """`accelerate.Accelerator`."""

    @staticmethod
    def prepared(method, accumulate=1):
        accelerate = pytest.importorskip("accelerate")
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        sparsifier = setpoint.Sparsifier(model, optimizer, method=method, target=0.75, steps=STEPS)
        loader = DataLoader(examples(BATCHES * accumulate), batch_size=8)
        return accelerator, sparsifier, *accelerator.prepare(model, optimizer, loader)

    @staticmethod
    def epoch(accelerator, model, optimizer, loader):
        for inputs, labels in loader:
            with accelerator.accumulate(model):
                optimizer.zero_grad()
                accelerator.backward(nn.functional.cross_entropy(model(inputs), labels))
                optimizer.step()

    @pytest.mark.parametrize("accumulate", [1, 2])
    @pytest.mark.parametrize("method", ["magnitude", "l0", "rigl", "set"])
    def test_states_are_saved_and_loaded(self, tmp_path, method, accumulate):
        accelerator, sparsifier, model, optimizer, loader = self.prepared(method, accumulate)
        for epoch in range(EPOCHS):
            if epoch == 2:
                accelerator.save_state(tmp_path)
            self.epoch(accelerator, model, optimizer, loader)
        assert_exact(sparsifier, accelerator.unwrap_model(model))
        whole = {name: tensor.clone() for name, tensor in accelerator.unwrap_model(model).state_dict().items()}

        accelerator, sparsifier, model, optimizer, loader = self.prepared(method, accumulate)
        accelerator.load_state(tmp_path)
        assert sparsifier.step == 2 * BATCHES
        for _ in range(2, EPOCHS):
            self.epoch(accelerator, model, optimizer, loader)
        inner = accelerator.unwrap_model(model)
        assert_exact(sparsifier, inner)
        assert all(torch.equal(whole[name], tensor) for name, tensor in inner.state_dict().items())


class TestLightning:
    """`lightning.Trainer`."""

    @staticmethod
    def fit(folder, method="magnitude", epochs=EPOCHS, ckpt_path=None, callbacks=(), **options):
        lightning = pytest.importorskip("lightning")

        class Module(lightning.LightningModule):
            def __init__(self):
                super().__init__()
                self.net = network()

            def training_step(self, batch, _):
                return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

            def configure_optimizers(self):
                optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
                self.sparsifier = setpoint.Sparsifier(self, optimizer, method=method, target=0.75, steps=STEPS)
                return optimizer

        module = Module()
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=folder,
            callbacks=list(callbacks),
            **options,
        )
        loader = DataLoader(examples(BATCHES * options.get("accumulate_grad_batches", 1)), batch_size=8)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="lightning")
            trainer.fit(module, loader, ckpt_path=ckpt_path)
        return module, trainer

    @pytest.mark.parametrize("accumulate", [1, 2])
    def test_gradients_are_accumulated(self, tmp_path, accumulate):
        module, _ = self.fit(tmp_path, accumulate_grad_batches=accumulate)
        assert module.sparsifier.step == STEPS
        assert_exact(module.sparsifier, module)

    @pytest.mark.parametrize("method", ["magnitude", "rigl"])
    def test_a_checkpoint_is_resumed(self, tmp_path, method):
        whole, _ = self.fit(tmp_path, method)
        _, trainer = self.fit(tmp_path, method, epochs=2)
        trainer.save_checkpoint(tmp_path / "half.ckpt")
        resumed, _ = self.fit(tmp_path, method, ckpt_path=tmp_path / "half.ckpt")
        assert resumed.sparsifier.step == STEPS
        assert_exact(resumed.sparsifier, resumed)
        assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values()))

    def test_averaged_weights_are_told_and_made_exact(self, tmp_path):
        averaging = pytest.importorskip("lightning.pytorch.callbacks.weight_averaging")

        module, _ = self.fit(tmp_path, callbacks=[averaging.EMAWeightAveraging(decay=0.9)])
        assert module.sparsifier.phase == "frozen"
        report = module.sparsifier.report()
        assert not report.exact
        assert "averaged" in report.differences["net.0.weight"]
        module.sparsifier.apply()
        assert_exact(module.sparsifier, module)
