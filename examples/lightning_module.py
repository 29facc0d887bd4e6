"""PyTorch Lightning: construct the sparsifier where the optimizer is made. Checkpoints carry its state.

pip install lightning
python examples/lightning_module.py
"""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import setpoint


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 4))

    def training_step(self, batch: list[torch.Tensor], index: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        self.sparsifier = setpoint.Sparsifier(self, optimizer, target=0.9, steps=steps)
        return optimizer


def main() -> setpoint.Report:
    data = DataLoader(TensorDataset(torch.randn(640, 16), torch.randint(4, (640,))), batch_size=32)
    model = Classifier()
    lightning.Trainer(max_epochs=3, accelerator="cpu", logger=False, enable_progress_bar=False).fit(model, data)
    print(model.sparsifier.report())
    return model.sparsifier.report()


if __name__ == "__main__":
    main()
