"""Small convolutional networks, one for each way of wiring channels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from setpoint.recipes.models.mobilenet import InvertedResidual


class PaddedBlock(nn.Module):
    """A residual block whose shortcut subsamples and pads channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride != 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.extra, self.extra))
        return F.relu(x + y)


class PaddedResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(*(PaddedBlock(i, o, o // i) for i, o in ((8, 8), (8, 16), (16, 16), (16, 32))))
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu(self.bn(self.conv(x))))
        return self.fc(F.avg_pool2d(x, x.size(3)).view(x.size(0), -1))


class Squeeze(nn.Module):
    """Channel attention, as in MobileNetV3 and EfficientNet."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class Squeezed(nn.Module):
    """A depthwise convolution whose channels are weighted by all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.squeeze = nn.Conv2d(8, 8, 3, 1, 1, groups=8), Squeeze(8)
        self.head = nn.Sequential(nn.Conv2d(8, 12, 1), nn.Hardswish(), nn.Dropout(0.2))
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm(self.stem(x)))
        return self.fc(self.head(x + self.squeeze(self.depthwise(x))).amax((2, 3)))


def inverted_residuals() -> nn.Sequential:
    """Blocks that do not expand, that add to what they read, and that stride."""
    blocks = InvertedResidual(6, 8, 1, 1), InvertedResidual(8, 8, 3, 1), InvertedResidual(8, 12, 3, 2)
    return nn.Sequential(nn.Conv2d(3, 6, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


class UNet(nn.Module):
    """Skips are concatenated; one way up is a transposed convolution, the other interpolates."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.down3 = (
            nn.Conv2d(1, 4, 3, 1, 1),
            nn.Conv2d(4, 6, 3, 1, 1),
            nn.Conv2d(6, 8, 3, 1, 1),
        )
        self.norm = nn.InstanceNorm2d(6, affine=True)
        self.up = nn.ConvTranspose2d(8, 5, 2, 2)
        self.mid, self.last = nn.Conv2d(11, 7, 3, 1, 1), nn.Conv2d(11, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.down1(x))
        b = F.leaky_relu(self.norm(self.down2(F.max_pool2d(a, 2))))
        c = F.relu(self.down3(F.max_pool2d(b, 2)))
        b = F.elu(self.mid(torch.cat([b, self.up(c)], dim=1)))
        return self.last(torch.cat([F.interpolate(b, scale_factor=2, mode="nearest"), a], dim=1))


class Shuffled(nn.Module):
    """Grouped convolutions around a channel shuffle, then a pixel shuffle."""

    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(3, 16, 1)
        self.first = nn.Conv2d(16, 32, 3, 1, 1, groups=groups)
        self.second = nn.Conv2d(32, 16, 3, 1, 1, groups=groups)
        self.expand = nn.Conv2d(16, 12, 1)
        self.shuffle = nn.PixelShuffle(2)
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.relu(self.stem(x))))
        b, c, h, w = x.size()
        x = x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)
        return self.last(self.shuffle(self.expand(F.relu(self.second(x)))))


class GroupNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 12, 3, 1, 1), nn.GroupNorm(4, 12)
        self.conv2, self.norm2 = nn.Conv2d(12, 6, 3, 1, 1), nn.GroupNorm(1, 6)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))).mean((-2, -1)))


class Mixed1d3d(nn.Module):
    """One- and three-dimensional convolutions, grouped and depthwise transposed ones, and a flattened classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3, self.norm3 = nn.Conv3d(1, 6, 3, padding=1), nn.BatchNorm3d(6)
        self.up = nn.ConvTranspose1d(6, 8, 2, 2, groups=2)
        self.depthwise = nn.ConvTranspose1d(8, 8, 2, 2, groups=8)
        self.prelu = nn.PReLU(8)
        self.conv1 = nn.Conv1d(8, 5, 3, padding="same")
        self.fc = nn.Linear(5 * 32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm3(self.conv3(x))).flatten(2)
        x = self.prelu(self.depthwise(self.up(x)))
        return self.fc(self.conv1(x).reshape(x.shape[0], -1))
