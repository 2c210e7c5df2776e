//! Questions to Postgres that are asked by one statement where many have one at once: a crowd comes back after each
//! restart. Nobody waits for others to ask, only for the answers that are under way.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

/// Statements of a kind under way at a time: on one connection that is silent the others need not wait.
const STATEMENTS_MAX: usize = 2;

/// Asks so many questions by one statement; as many answers, in their order.
type Ask<Way, Question, Answer> =
    fn(Way, Vec<Question>) -> BoxFuture<'static, sqlx::Result<Vec<Answer>>>;
/// What a question was answered; all that a statement asked share its error.
pub type Answered<Answer> = Result<Answer, Arc<sqlx::Error>>;

/// Questions of one kind. Cheap to clone.
pub struct Together<Way, Question, Answer>(Arc<Inner<Way, Question, Answer>>);

impl<Way, Question, Answer> Clone for Together<Way, Question, Answer> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<Way, Question, Answer> {
    way: Way,
    /// Questions of one statement.
    most: usize,
    ask: Ask<Way, Question, Answer>,
    state: Mutex<State<Question, Answer>>,
}

struct State<Question, Answer> {
    waiting: VecDeque<Waiting<Question, Answer>>,
    /// Statements under way.
    asking: usize,
}

type Waiting<Question, Answer> = (Question, oneshot::Sender<Answered<Answer>>);

impl<Way, Question, Answer> Together<Way, Question, Answer>
where
    Way: Clone + Send + Sync + 'static,
    Question: Send + 'static,
    Answer: Send + 'static,
{
    pub fn new(way: Way, most: usize, ask: Ask<Way, Question, Answer>) -> Self {
        let state = Mutex::new(State { waiting: VecDeque::new(), asking: 0 });
        Self(Arc::new(Inner { way, most, ask, state }))
    }

    /// The answer to a question, of a statement that begins after this call.
    pub async fn answer(&self, question: Question) -> Answered<Answer> {
        let (teller, told) = oneshot::channel();
        if self.0.wait((question, teller)) {
            tokio::spawn(Arc::clone(&self.0).run());
        }
        told.await.unwrap_or_else(|_| Err(Arc::new(sqlx::Error::WorkerCrashed)))
    }
}

impl<Way: Clone, Question, Answer> Inner<Way, Question, Answer> {
    /// Puts a question behind the others; `true` if one more statement may be under way.
    fn wait(&self, question: Waiting<Question, Answer>) -> bool {
        let mut state = self.lock();
        // While there is no answer, those who gave up take no more room than those who wait.
        if state.waiting.len() == state.waiting.capacity() {
            state.waiting.retain(|(_, teller)| !teller.is_closed());
        }
        state.waiting.push_back(question);
        let begins = state.asking < STATEMENTS_MAX;
        state.asking += usize::from(begins);
        begins
    }

    async fn run(self: Arc<Self>) {
        while let Some((questions, tellers)) = self.next() {
            match (self.ask)(self.way.clone(), questions).await {
                Ok(answers) => {
                    for (teller, answer) in tellers.into_iter().zip(answers) {
                        teller.send(Ok(answer)).ok();
                    }
                }
                Err(error) => {
                    let error = Arc::new(error);
                    for teller in tellers {
                        teller.send(Err(Arc::clone(&error))).ok();
                    }
                }
            }
        }
    }

    /// What the next statement asks, of those who still wait.
    #[expect(clippy::type_complexity, reason = "a pair of lists")]
    fn next(&self) -> Option<(Vec<Question>, Vec<oneshot::Sender<Answered<Answer>>>)> {
        let mut state = self.lock();
        let State { waiting, asking } = &mut *state;
        let open = std::iter::from_fn(|| waiting.pop_front());
        let open = open.filter(|(_, teller)| !teller.is_closed()).take(self.most);
        let (questions, tellers): (Vec<_>, Vec<_>) = open.unzip();
        if questions.is_empty() {
            *asking -= 1;
            // What a crowd took is given back.
            *waiting = VecDeque::new();
            return None;
        }
        Some((questions, tellers))
    }

    fn lock(&self) -> MutexGuard<'_, State<Question, Answer>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    /// A database that answers when it may, and notes what it was asked by each statement.
    #[derive(Clone)]
    struct Database {
        may_answer: Arc<Semaphore>,
        asked: Arc<Mutex<Vec<Vec<u32>>>>,
    }

    impl Database {
        fn new() -> Self {
            Self { may_answer: Arc::new(Semaphore::new(0)), asked: Arc::default() }
        }

        fn asked(&self) -> Vec<Vec<u32>> {
            self.asked.lock().unwrap().clone()
        }
    }

    /// Twice as much as was asked; an error where 13 is among it.
    fn double(way: Database, questions: Vec<u32>) -> BoxFuture<'static, sqlx::Result<Vec<u32>>> {
        async move {
            way.asked.lock().unwrap().push(questions.clone());
            way.may_answer.acquire().await.unwrap().forget();
            if questions.contains(&13) {
                return Err(sqlx::Error::PoolTimedOut);
            }
            Ok(questions.into_iter().map(|question| 2 * question).collect())
        }
        .boxed()
    }

    async fn turns() {
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn who_asks_while_others_wait_is_asked_about_with_them_and_gets_their_own_answer() {
        let database = Database::new();
        let together = Together::new(database.clone(), 4, double);
        let ask = |question| {
            let together = together.clone();
            tokio::spawn(async move { together.answer(question).await.unwrap() })
        };
        let mut all = vec![ask(1)];
        turns().await;
        all.push(ask(2));
        turns().await;
        all.extend((3..=8).map(ask));
        turns().await;
        assert_eq!(database.asked(), [[1], [2]], "so many statements at a time");
        database.may_answer.add_permits(9);
        let answers = join_all(all).await;
        assert!((1..=8).map(|question| 2 * question).eq(answers.into_iter().map(Result::unwrap)));
        assert_eq!(database.asked(), [vec![1], vec![2], vec![3, 4, 5, 6], vec![7, 8]]);
        assert_eq!(together.answer(9).await.unwrap(), 18, "and again");
    }

    #[tokio::test]
    async fn a_statement_that_fails_fails_for_those_alone_whom_it_was_for() {
        let database = Database::new();
        database.may_answer.add_permits(9);
        let together = Together::new(database, 2, double);
        let answers = join_all([12, 13, 14].map(|question| together.answer(question))).await;
        assert!(answers[..2].iter().all(Result::is_err));
        assert_eq!(*answers[2].as_ref().unwrap(), 28);
        assert_eq!(together.answer(1).await.unwrap(), 2);
    }

    #[tokio::test]
    async fn who_gave_up_is_asked_about_no_more_and_takes_no_room() {
        let database = Database::new();
        let together = Together::new(database.clone(), 4, double);
        let first = [1, 2].map(|question| {
            let together = together.clone();
            tokio::spawn(async move { together.answer(question).await })
        });
        turns().await;
        for question in 100..10_100 {
            assert!(together.answer(question).now_or_never().is_none());
        }
        assert!(together.0.lock().waiting.capacity() < 100);
        let last = tokio::spawn(async move { together.answer(3).await.unwrap() });
        turns().await;
        database.may_answer.add_permits(9);
        assert!(join_all(first).await.into_iter().all(|answer| answer.unwrap().is_ok()));
        assert_eq!(last.await.unwrap(), 6);
        assert_eq!(database.asked().last().unwrap(), &[3]);
    }
}
