//! `lockstep tail`: final tasks as they come.

use anyhow::Context as _;
use lockstep_api::views::TasksView;
use lockstep_client::{Client, Follow};
use lockstep_types::{Height, TaskNumber};

use crate::args::Tail;

pub async fn run(options: Tail) -> anyhow::Result<()> {
    let client = Client::new(options.urls)?;
    let token = options.token_file.map(|file| {
        let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        anyhow::Ok(text.trim().to_owned())
    });
    let from_now_on = options.after.is_none() && options.from_height.is_none() && !options.all;
    let after = if from_now_on {
        let page: TasksView = client.get_json("/api/tasks?limit=1").await?;
        page.newest
    } else {
        options.after.map(TaskNumber)
    };
    let mut feed = client.follow(Follow {
        project: options.project,
        after,
        from_height: options.from_height.map(Height),
        token: token.transpose()?,
    });
    let mut told = 0;
    while options.count.is_none_or(|count| told < count) {
        println!("{}", feed.next().await?.json);
        told += 1;
    }
    Ok(())
}
